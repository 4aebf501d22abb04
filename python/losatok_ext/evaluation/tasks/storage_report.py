"""The report of a storage measurement: a table and two charts over bits per second."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from losatok_ext.evaluation.metrics.spectra import MEL_LOSS
from losatok_ext.evaluation.reporting.numbers import fixed
from losatok_ext.evaluation.reporting.report import Headline, Line, LineChart, Report, Table
from losatok_ext.evaluation.tasks.storage import FLOATS, StorageResult, StorageRow

LATENT_ERROR = "root mean square difference to the float32 latents, divided by the standard deviation of these"


def storage_report(result: StorageResult) -> Report:
    """The report of what :func:`~losatok_ext.evaluation.tasks.storage.evaluate_storage` measured."""
    facts = {
        "model": result.fingerprint,
        "latent": f"{result.latent_dim} dimensions at {result.frame_rate:g} Hz",
        "recordings": str(result.recordings),
        "audio": f"{result.seconds:.1f} s",
    }
    values = {
        "fingerprint": result.fingerprint,
        "frame_rate": result.frame_rate,
        "latent_dim": result.latent_dim,
        "recordings": result.recordings,
        "seconds": result.seconds,
        "definitions": {"mel_loss": MEL_LOSS, "latent_error": LATENT_ERROR},
        "rows": [dataclasses.asdict(row) for row in result.rows],
    }
    report = Report("storage", "Storing latents", facts, values, failures=result.failures)
    report.headlines = [
        Headline(
            f"{row.storage}, kbit/s", f"{row.bits_per_second / 1000:,.1f}", f"latent error {_short(row.latent_error)}"
        )
        for row in result.rows
    ]
    heads = ["storage", "bit/s, latents", "bit/s, files", "latent error", "mel loss to float32", "to the recording"]
    cells = [
        [
            row.storage,
            f"{row.bits_per_second:,.0f}",
            f"{row.file_bits_per_second:,.0f}",
            _short(row.latent_error),
            _short(row.mel_loss_to_float32),
            fixed(row.mel_loss_to_recording),
        ]
        for row in result.rows
    ]
    report.tables = [Table("What each storage costs", heads, cells)]
    erring = [row for row in result.rows if row.latent_error > 0]  # a logarithmic axis has no place for 0
    if erring:
        chart = LineChart("Latent error", _lines(erring, "latent_error"), "kbit/s", "error", x_log=True, y_log=True)
        report.charts.append(chart)
    lines = _lines(result.rows, "mel_loss_to_recording")
    report.charts.append(LineChart("Mel loss to the recording", lines, "kbit/s", "mel loss", x_log=True))
    report.notes = [
        f"Mel loss: {MEL_LOSS}.",
        f"Latent error: {LATENT_ERROR}.",
        "Means over recordings are weighted by their length.",
    ]
    return report


def _lines(rows: Sequence[StorageRow], figure: str) -> dict[str, Line]:
    """Continuous latents as a line, codes of quantizers as single points."""
    lines = {}
    for name, joined in (("latents", True), ("codes", False)):
        own = sorted((row for row in rows if (row.storage in FLOATS) == joined), key=lambda row: row.bits_per_second)
        if own:
            points = [(row.bits_per_second / 1000, getattr(row, figure)) for row in own]
            lines[name] = Line(points, [row.storage for row in own], joined)
    return lines


def _short(value: float) -> str:
    return "0" if value == 0 else fixed(value) if value >= 0.01 else f"{value:.1e}"
