"""The picture of a storage report: what each bit buys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from losatok_ext.audio.plots import PICTURES, import_figure
from losatok_ext.errors import UserError
from losatok_ext.evaluation.tasks.storage import FLOATS, StorageReport
from losatok_ext.files import atomic_path

_CONTINUOUS, _CODES, _LIGHT = "#374151", "#c2410c", "#9ca3af"


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
    left, right = figure.subplots(1, 2, sharex=True)
    figure.suptitle(
        f"Storing {report.latent_dim} dimensions at {report.frame_rate:g} Hz: "
        f"{report.recordings} recordings, {report.seconds:.0f} s",
        fontsize=11,
    )
    _points(left, report, "latent_error", "latent error, relative to the latents (float32 has none)")
    if any(row.latent_error > 0 for row in report.rows):
        left.set_yscale("log")
    _points(right, report, "mel_to_recording", "mel distance to the recording")
    right.set_ylim(bottom=0)
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _points(axis: Any, report: StorageReport, name: str, label: str) -> None:
    for continuous, colour, marker in ((True, _CONTINUOUS, "o"), (False, _CODES, "D")):
        rows = [row for row in report.rows if (row.storage in FLOATS) == continuous]
        if name == "latent_error":  # an axis of logarithms has no place for none
            rows = [row for row in rows if row.latent_error > 0]
        bits = [row.bits_per_second / 1000 for row in rows]
        values = [getattr(row, name) for row in rows]
        if continuous:
            axis.plot(bits, values, color=_LIGHT, linewidth=1, zorder=1)
        axis.scatter(bits, values, s=34, color=colour, marker=marker, zorder=2)
        # Codes above, turned so that close ones do not meet; the others clear of the line through them.
        place: dict[str, Any] = {"xytext": (0, -15), "ha": "center"}
        if name == "latent_error":
            place = {"xytext": (-7, -1), "ha": "right", "va": "center"}
        if not continuous:
            place = {"xytext": (2, 6), "ha": "left", "va": "bottom", "rotation": 30, "rotation_mode": "anchor"}
        for row, x, y in zip(rows, bits, values, strict=True):
            axis.annotate(row.storage, (x, y), textcoords="offset points", fontsize=8, color=colour, **place)
    axis.set_xscale("log")
    axis.margins(x=0.14, y=0.27)
    axis.set_xlabel("kbit per second", fontsize=9)
    axis.set_title(label, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.grid(True, which="major", color="#e5e7eb", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
