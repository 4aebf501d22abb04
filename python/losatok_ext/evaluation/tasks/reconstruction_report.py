"""The report of reconstructions: headlines, tables by group, charts, and clips to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from losatok_ext.audio.files import read_audio
from losatok_ext.evaluation.reporting.numbers import fixed, with_spread
from losatok_ext.evaluation.reporting.report import Bar, BarChart, Example, Headline, Report, Table
from losatok_ext.evaluation.reporting.sounds import LONGEST, loudest, make_sound
from losatok_ext.evaluation.tasks.reconstruction import METRICS, ClipResult, Group, ReconstructionResult
from losatok_ext.models import LoSATok

_COLUMNS = 5  # groups that are shown as columns; more are shown as rows
_LISTED = 1000  # clips that the page lists
_HEADLINES = ("log_band_ratio", "mel_distance", "f0_fine", "pesq", "stoi", "rtf")


def reconstruction_report(model: LoSATok, found: ReconstructionResult, examples: int = 9) -> Report:
    """The report of what :func:`~losatok_ext.evaluation.tasks.reconstruction.evaluate_reconstruction` measured.

    Args:
        model: the model that was measured; it reconstructs the examples again.
        found: the figures.
        examples: at most as many clips to listen to, from all domains; see :func:`choose_examples`.
    """
    present = [name for name in METRICS if found.overall.metrics[name].clips]
    facts = {
        "model": found.fingerprint,
        "clips": str(found.overall.clips),
        "audio": f"{found.overall.seconds:.1f} s",
        "latent": f"{model.config.latent_dim} dimensions at {model.frame_rate} Hz",
        "device": _device(model),
    }
    if model.quantizer_name is not None:
        facts["quantizer"] = model.quantizer_name
    report = Report("reconstruction", "Reconstruction", facts, _values(found))
    report.headlines = [_headline(found, name) for name in _HEADLINES if name in present]
    keys = list(dict.fromkeys(group.key for group in found.groups[1:]))
    by_key = {key: [group for group in found.groups if group.key == key] for key in keys}
    wide = {key: groups for key, groups in by_key.items() if len(groups) <= _COLUMNS}
    if not wide:
        report.tables.append(_across("All clips", [found.overall], present))
    report.tables += [_across(f"All clips, and by {key}", [found.overall, *wide[key]], present) for key in wide]
    report.tables += [_down(f"By {key}", by_key[key], present) for key in keys if key not in wide]
    report.tables.append(_clips_table(found.clips, present))
    for key in keys:
        report.charts += _charts(key, by_key[key], present)
    report.examples = [_example(model, clip, place) for place, clip in choose_examples(found.clips, examples)]
    report.notes = [f"{METRICS[name].title}: {METRICS[name].meaning}." for name in present]
    report.notes += [
        "Each clip is compared up to its last complete token, without padding.",
        "Figures are means over the clips that a measure is defined for, ± the standard deviation over clips; 'of a "
        "constant' and RTF are one sum divided by another, so long clips have more weight.",
        f"One constant spectrum, the mean of these {found.overall.clips} clips, has {found.constant:.3f} log bands.",
    ]
    report.failures = found.failures
    return report


def choose_examples(clips: Sequence[ClipResult], count: int) -> list[tuple[str, ClipResult]]:
    """(rank, clip) of at most ``count`` clips: as many of each domain, from its best to its worst by log bands."""
    domains = list(dict.fromkeys(clip.item.domain for clip in clips))
    chosen: list[tuple[str, ClipResult]] = []
    for index, domain in enumerate(domains):
        ranked = sorted((c for c in clips if c.item.domain == domain), key=lambda clip: clip.known("log_band"))
        share = min(count // len(domains) + (index < count % len(domains)), len(ranked))
        last = len(ranked) - 1
        places = [last // 2] if share == 1 else [round(last * i / (share - 1)) for i in range(share)]
        for place in sorted(set(places)) if share else []:
            name = {0: "best", last: "worst"}.get(place, f"rank {place + 1}") if last else "only one"
            chosen.append((f"{name} of {len(ranked)}", ranked[place]))
    return chosen


def _values(found: ReconstructionResult) -> dict[str, Any]:
    return {
        "fingerprint": found.fingerprint,
        "constant_spectrum": found.constant,
        "metrics": {name: {"better": metric.better, "meaning": metric.meaning} for name, metric in METRICS.items()},
        "groups": [
            {
                "key": group.key,
                "value": group.value,
                "clips": group.clips,
                "seconds": group.seconds,
                **{name: entry._asdict() for name, entry in group.metrics.items()},
            }
            for group in found.groups
        ],
        "clips": [
            {
                "name": clip.item.name,
                "path": str(clip.item.path),
                "domain": clip.item.domain,
                "seconds": clip.seconds,
                **clip.values,
            }
            for clip in found.clips
        ],
    }


def _device(model: LoSATok) -> str:
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread" + ("s" if threads > 1 else "")


def _headline(found: ReconstructionResult, name: str) -> Headline:
    metric, entry = METRICS[name], found.overall.metrics[name]
    note = "" if entry.spread is None else f"± {entry.spread:.{metric.digits}f} over {entry.clips} clips"
    titles = {
        "log_band_ratio": "log bands, of a constant",
        "rtf": "real-time factor",
        "f0_fine": "F0, fine, cents",
    }
    return Headline(titles.get(name, metric.title), fixed(entry.mean, metric.digits), note)


def _across(title: str, groups: Sequence[Group], names: Sequence[str]) -> Table:
    """One row per metric and one column per group, with standard deviations."""
    rows = [
        [
            _head(name),
            *(with_spread(g.metrics[name].mean, g.metrics[name].spread, METRICS[name].digits) for g in groups),
        ]
        for name in names
    ]
    counts = ["clips", *(str(group.clips) for group in groups)]
    return Table(title, ["", *(group.value or "(none)" for group in groups)], [counts, *rows])


def _down(title: str, groups: Sequence[Group], names: Sequence[str]) -> Table:
    """One row per group and one column per metric, without standard deviations."""
    rows = [
        [g.value or "(none)", str(g.clips), *(fixed(g.metrics[name].mean, METRICS[name].digits) for name in names)]
        for g in groups
    ]
    return Table(title, ["", "clips", *map(_head, names)], rows)


def _clips_table(clips: Sequence[ClipResult], names: Sequence[str]) -> Table:
    """One row per clip, from the worst log bands to the best."""
    ranked = sorted(clips, key=lambda clip: -clip.known("log_band"))
    rows = [
        [
            clip.item.name,
            clip.item.domain,
            f"{clip.seconds:.2f}",
            *(fixed(clip.values[name], METRICS[name].digits) for name in names),
        ]
        for clip in ranked[:_LISTED]
    ]
    note = "" if len(ranked) <= _LISTED else f"The worst {_LISTED} of {len(ranked)}; the JSON has all."
    return Table("Clip by clip", ["", "domain", "seconds", *map(_head, names)], rows, note, folded=True)


def _head(name: str) -> str:
    return f"{METRICS[name].title} {'↓' if METRICS[name].better == 'lower' else '↑'}"


def _charts(key: str, groups: Sequence[Group], names: Sequence[str]) -> list[BarChart]:
    charts = []
    for name in ("log_band_ratio", "mel_distance"):
        if name in names and len(groups) > 1:
            bars = [
                Bar(group.value or "(none)", group.metrics[name].mean or 0.0, group.metrics[name].spread)
                for group in groups
                if group.metrics[name].mean is not None
            ]
            what = "Log bands, relative to a constant spectrum" if name == "log_band_ratio" else "Mel distance"
            charts.append(BarChart(f"{what}, by {key}", bars, "less is better; ± standard deviation over clips"))
    return charts


def _example(model: LoSATok, clip: ClipResult, place: str) -> Example:
    audio = read_audio(clip.item.path, model.sample_rate)[: round(2 * LONGEST * model.sample_rate)]
    decoded = model.reconstruct(audio[None])[0].cpu()
    peak = loudest(audio, model.sample_rate)
    sounds = [
        make_sound(label, signal, model.sample_rate, peak)
        for label, signal in (("recording", audio), ("reconstruction", decoded))
    ]
    figures = (f"{METRICS[n].title} {fixed(v, METRICS[n].digits)}" for n, v in clip.values.items() if v is not None)
    domain = f"{clip.item.domain}, " if clip.item.domain else ""
    return Example(f"{clip.item.name}: {domain}{place}", " · ".join(figures), sounds)
