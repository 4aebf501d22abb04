"""The report of a profile: one row and one bar per stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from losatok_ext.evaluation.reporting.numbers import MISSING, fixed
from losatok_ext.evaluation.reporting.report import Bar, BarChart, Headline, Report, Table
from losatok_ext.evaluation.tasks.profiling import Profile, StageTime


def profiling_report(found: Profile, title: str, facts: Mapping[str, str], audio_seconds: float) -> Report:
    """The report of a profile.

    Args:
        found: from :func:`~losatok_ext.evaluation.tasks.profiling.profile`.
        title: what was timed.
        facts: about the model and the file.
        audio_seconds: seconds of audio that the run encoded or decoded.
    """
    speed = audio_seconds / max(found.seconds, 1e-9)
    ceiling = f"{found.ceiling.flop_per_second / 1e9:.0f} GFLOP/s"
    report = Report(
        "profile",
        title,
        {**facts, "audio": f"{audio_seconds:.2f} s", "time": f"{found.seconds:.3f} s"},
        {
            **dataclasses.asdict(found),
            "audio_seconds": audio_seconds,
            "real_time_factor": found.seconds / audio_seconds,
        },
    )
    report.headlines = [
        Headline("speed", f"{speed:.1f}x real time"),
        Headline("ceiling", ceiling, f"square matrix products by {found.ceiling.library}"),
    ]
    total = StageTime("all", found.seconds, sum(stage.flop for stage in found.stages))
    cells = [_cells(stage, found) for stage in (*found.stages, total)]
    heads = ["stage", "ms", "% of time", "GFLOP", "% of ceiling"]
    note = f"{audio_seconds:.2f} s of audio in {found.seconds:.3f} s, {speed:.1f}x real time. Ceiling: {found.ceiling}."
    report.tables = [Table("Time by stage", heads, cells, note)]
    report.charts = [BarChart("Time by stage", [Bar(s.name, 1e3 * s.seconds) for s in found.stages], "ms")]
    report.notes = [
        "The time of a stage does not contain that of the stages inside it.",
        "Ceiling: speed of a square matrix product in the model's dtype, measured just before; % of ceiling: the "
        "matrix products and convolutions of a stage, divided by its time and by the ceiling.",
    ]
    return report


def _cells(stage: StageTime, found: Profile) -> list[str]:
    share = 100 * stage.seconds / found.seconds if found.seconds else 0.0
    speed = stage.flop / stage.seconds if stage.flop and stage.seconds else None
    return [
        stage.name,
        fixed(1e3 * stage.seconds, 2),
        fixed(share, 1),
        MISSING if speed is None else fixed(stage.flop / 1e9, 2),
        MISSING if speed is None else fixed(100 * speed / found.ceiling.flop_per_second, 1),
    ]
