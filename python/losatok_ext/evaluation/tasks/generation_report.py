"""The report of generated clips: distances with their intervals, and clips of both sets to listen to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from losatok_ext.audio.files import read_audio
from losatok_ext.evaluation.metrics.distances import Interval
from losatok_ext.evaluation.reporting.numbers import three_digits, with_spread
from losatok_ext.evaluation.reporting.report import Bar, BarChart, Example, Headline, Report, Table
from losatok_ext.evaluation.reporting.sounds import make_sound
from losatok_ext.evaluation.tasks.generation import GenerationResult, GenerationRow
from losatok_ext.recordings.labelled import Item

_NOTES = (
    "Frechet: squared distance between normal distributions with the moments of both sets; it is too large for small "
    "sets. Extrapolated: a line over 1 / clips, fitted to parts of the generated clips, at 1 / clips = 0; the bias "
    "from the size of the reference stays.",
    "Kernel: unbiased squared maximum mean discrepancy, kernel (a b / D + 1)^3; its mean is 0 for sets of the same "
    "distribution.",
    "Intervals are the middle 95 % over bootstrap samples of clips, shifted so that their mean is the value.",
    "Halves of the reference: the mean distance between two random halves of it. A distance near it cannot be told "
    "from 0 with these clips.",
)


def generation_report(found: GenerationResult, facts: Mapping[str, str], sample_rate: int, examples: int = 6) -> Report:
    """The report of generated clips.

    Args:
        found: the distances.
        facts: about the model and the measure.
        sample_rate: Hz that the examples are read at.
        examples: clips of each set to listen to, at most; they are spread evenly over the set.
    """
    shown_facts = {**facts, "reference": f"{len(found.reference)} clips", "generated": f"{len(found.generated)} clips"}
    score = None if found.clap_score is None else found.clap_score._asdict()
    values = {"rows": [_values(row) for row in found.rows], "clap_score": score}
    report = Report("generation", "Generated clips", shown_facts, values)
    first = found.rows[0]
    report.headlines = [
        Headline(f"Frechet, {first.feature}", three_digits(first.frechet.value), _interval(first.frechet)),
        Headline(f"kernel, {first.feature}", three_digits(first.kernel.value), _interval(first.kernel)),
    ]
    if found.clap_score is not None:
        text = with_spread(found.clap_score.mean, found.clap_score.spread)
        report.headlines.append(Headline("CLAP, clip and text", text, f"cosine, {found.clap_score.clips} clips"))
    report.tables = [_table(found.rows)]
    for row in found.rows:
        bars = [Bar("generated", row.frechet.value, row.frechet.spread)]
        if row.halves_frechet is not None:
            bars.append(Bar("halves of reference", row.halves_frechet))
        if row.extrapolated is not None:
            bars.insert(1, Bar("extrapolated", row.extrapolated))
        report.charts.append(
            BarChart(f"Frechet distance, {row.feature}", bars, "less is better; ± standard deviation of the bootstrap")
        )
    report.notes = [*(f"{row.feature}: {warning}." for row in found.rows for warning in row.warnings), *_NOTES]
    sides = {"reference": found.reference, "generated": found.generated}
    chosen = {title: _spread(items, examples) for title, items in sides.items()}
    for index in range(max(map(len, chosen.values()))):
        pair = [(title, items[index]) for title, items in chosen.items() if index < len(items)]
        report.examples.append(_example(index + 1, pair, sample_rate))
    report.failures = found.failures
    return report


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` items, evenly from first to last."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _example(number: int, pair: Sequence[tuple[str, Item]], sample_rate: int) -> Example:
    """A clip of each set side by side. The two are not related."""
    sounds = [
        make_sound(f"{title}: {item.name}", read_audio(item.path, sample_rate), sample_rate) for title, item in pair
    ]
    texts = (f"{title}: {item.values['text']}" for title, item in pair if item.values.get("text"))
    return Example(str(number), " · ".join(texts), sounds)


def _table(rows: Sequence[GenerationRow]) -> Table:
    cells = [
        [
            row.feature,
            str(row.dims),
            f"{row.reference} / {row.generated}",
            three_digits(row.frechet.value),
            _interval(row.frechet),
            three_digits(row.extrapolated),
            three_digits(row.halves_frechet),
            three_digits(row.kernel.value),
            _interval(row.kernel),
            three_digits(row.halves_kernel),
        ]
        for row in rows
    ]
    heads = ["", "dims", "rows", "Frechet ↓", "95 %", "extrapolated", "halves", "kernel ↓", "95 %", "halves"]
    note = " ".join(f"{row.feature}: {warning}." for row in rows for warning in row.warnings)
    return Table("Distances of generated clips to the reference", heads, cells, note)


def _interval(interval: Interval) -> str:
    return f"{three_digits(interval.low)} to {three_digits(interval.high)}"


def _values(row: GenerationRow) -> dict[str, object]:
    return {**dataclasses.asdict(row), "frechet": row.frechet._asdict(), "kernel": row.kernel._asdict()}
