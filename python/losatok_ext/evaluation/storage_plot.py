"""The picture of a storage report: what each bit buys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from losatok_ext.audio.plots import PICTURES, import_figure
from losatok_ext.errors import UserError
from losatok_ext.evaluation.storage import FLOATS, StorageReport
from losatok_ext.files import atomic_path

_CONTINUOUS, _CODES, _LIGHT = "#374151", "#c2410c", "#9ca3af"
_LEAST_ERROR = 1e-6  # of the axis: float32 has none, which a logarithm cannot show


def plot_storage(path: str | os.PathLike[str], report: StorageReport) -> None:
    """Draw latent error and mel distance to the recording over bits per second, and save it whole or not at all.

    Args:
        path: a .png, .pdf, .svg, .jpg or .webp file; parent folders are made.
        report: with at least one row.

    Raises:
        UserError: the suffix is not one of these, the file cannot be written, or matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{path} cannot be drawn: {path.suffix or 'no suffix'} is none of {', '.join(PICTURES)}")
    figure: Any = import_figure()(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(
        f"Storing {report.latent_dim} dimensions at {report.frame_rate:g} Hz: "
        f"{report.recordings} recordings, {report.seconds:.0f} s",
        fontsize=11,
    )
    _points(left, report, "latent_error", "latent error (relative RMS)")
    left.set_yscale("log")
    _points(right, report, "mel_to_recording", "mel distance to the recording")
    exact = [row.mel_to_recording for row in report.rows if row.storage == "float32"]
    for level in exact:
        right.axhline(level, color=_LIGHT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    right.set_ylim(bottom=0)
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _points(axis: Any, report: StorageReport, name: str, label: str) -> None:
    for continuous, colour, marker in ((True, _CONTINUOUS, "o"), (False, _CODES, "D")):
        rows = [row for row in report.rows if (row.storage in FLOATS) == continuous]
        bits = [row.bits_per_second / 1000 for row in rows]
        values = [
            max(getattr(row, name), _LEAST_ERROR) if name == "latent_error" else getattr(row, name) for row in rows
        ]
        if continuous:
            axis.plot(bits, values, color=_LIGHT, linewidth=1, zorder=1)
        axis.scatter(bits, values, s=34, color=colour, marker=marker, zorder=2)
        for row, x, y in zip(rows, bits, values, strict=True):
            said = row.storage if name != "latent_error" or row.latent_error > 0 else f"{row.storage} (exact)"
            axis.annotate(
                said, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour
            )
    axis.set_xscale("log")
    axis.margins(x=0.12, y=0.15)
    axis.set_xlabel("kbit per second", fontsize=9)
    axis.set_title(label, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.grid(True, which="major", color="#e5e7eb", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
