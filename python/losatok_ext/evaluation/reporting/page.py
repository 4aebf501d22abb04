"""One self-contained page of a report: it opens offline, in light and dark, and asks nothing of any server."""

from __future__ import annotations

import base64
import math
from html import escape

import losatok_ext
from losatok_ext.evaluation.reporting.charts import svg
from losatok_ext.evaluation.reporting.page_style import SCRIPT, STYLE
from losatok_ext.evaluation.reporting.report import Example, Figure, Report, Sound, Table

_TICKS = (250, 1000, 4000)  # Hz, beside a spectrogram


def page(report: Report) -> str:
    """The whole HTML document: players, pictures and charts are in it."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(report.title)}</title>",
        f"<style>{STYLE}</style></head><body><header><div><h1>{escape(report.title)}</h1>",
        f'<p class="facts">{_facts(report)}</p></div>',
        '<button id="theme" type="button" aria-label="light or dark">◐</button></header><main>',
    ]
    if report.figures:
        parts.append(f'<section class="figures">{"".join(map(_figure, report.figures))}</section>')
    parts += [_table(table) for table in report.tables if not table.folded]
    if report.charts:
        charts = "".join(f"<figure><figcaption>{escape(c.title)}</figcaption>{svg(c)}</figure>" for c in report.charts)
        parts.append(f'<section class="charts">{charts}</section>')
    if report.examples:
        examples = "".join(map(_example, report.examples))
        parts.append(f'<section class="examples"><h2>Listen</h2>{examples}</section>')
    parts += [_table(table) for table in report.tables if table.folded]
    if report.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
        parts.append(f"<section><h2>How it was measured</h2><ul>{notes}</ul></section>")
    if report.failures:
        left_out = "".join(f"<li>{escape(failure.message)}</li>" for failure in report.failures)
        parts.append(f"<section><h2>Left out: {len(report.failures)}</h2><ul>{left_out}</ul></section>")
    parts.append(
        f"</main><footer>losatok_ext {losatok_ext.__version__}</footer><script>{SCRIPT}</script></body></html>"
    )
    return "\n".join(parts)


def _facts(report: Report) -> str:
    return " · ".join(f"{escape(name)} <b>{escape(text)}</b>" for name, text in report.facts.items())


def _figure(figure: Figure) -> str:
    note = f"<small>{escape(figure.note)}</small>" if figure.note else ""
    return f"<div><span>{escape(figure.label)}</span><strong>{escape(figure.value)}</strong>{note}</div>"


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}'
    if table.folded:
        return f"<section><details><summary>{escape(table.title)}</summary>{body}</details></section>"
    return f"<section><h2>{escape(table.title)}</h2>{body}</section>"


def _cell(text: str) -> str:
    """A cell whose spread stands back behind its value."""
    value, sign, spread = text.partition(" ± ")
    return escape(value) + (f" <i>± {escape(spread)}</i>" if sign else "")


def _example(example: Example) -> str:
    sounds = "".join(map(_sound, example.sounds))
    return (
        f"<article><h3>{escape(example.title)}</h3><p>{escape(example.facts)}</p>"
        f'<div class="sounds">{sounds}</div></article>'
    )


def _sound(sound: Sound) -> str:
    picture, audio = (base64.b64encode(data).decode() for data in (sound.picture, sound.audio))
    top = 2595 * math.log10(1 + sound.sample_rate / 2 / 700)
    ticks = "".join(
        f'<span style="bottom:{100 * 2595 * math.log10(1 + hertz / 700) / top:.1f}%">'
        f"{f'{hertz // 1000}k' if hertz >= 1000 else hertz}</span>"
        for hertz in _TICKS
        if hertz < sound.sample_rate / 2
    )
    name = escape(sound.label)
    return (
        f'<div class="sound"><h4>{name}<small>{sound.seconds:.2f} s</small></h4><div class="picture">'
        f'<div class="ticks">{ticks}</div><div class="mel"><img src="data:image/png;base64,{picture}" '
        f'alt="mel spectrogram: {name}"><b class="head"></b></div></div>'
        f'<audio controls preload="metadata" src="data:audio/flac;base64,{audio}"></audio></div>'
    )
