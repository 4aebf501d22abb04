"""Writing a report to files: JSON, Markdown, one page, and a picture of its charts."""

from __future__ import annotations

import json
from pathlib import Path

from losatok_ext.errors import UserError
from losatok_ext.evaluation.reporting.markdown import document
from losatok_ext.evaluation.reporting.page import page
from losatok_ext.evaluation.reporting.pictures import draw_charts
from losatok_ext.evaluation.reporting.report import Report
from losatok_ext.files import atomic_path

SUFFIXES = ("json", "md", "html", "png")


def report_places(folder: Path, name: str, overwrite: bool) -> dict[str, Path]:
    """Where the files of a report go: suffix -> path. Call it before measuring, so that no work is lost.

    Raises:
        UserError: ``folder`` is a file or is named like one, or a file of the report exists and ``overwrite`` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"-o {folder} is a file; give the name of a folder")
    if not folder.exists() and folder.suffix.lower().lstrip(".") in SUFFIXES:
        raise UserError(
            f"-o {folder} is named like a file; give the name of a folder, such as {folder.with_suffix('')}"
        )
    places = {suffix: folder / f"{name}.{suffix}" for suffix in SUFFIXES}
    existing = next((path for path in places.values() if path.exists()), None)
    if existing is not None and not overwrite:
        raise UserError(f"{existing} exists already; pass --overwrite or another folder")
    return places


def write_report(report: Report, places: dict[str, Path]) -> list[Path]:
    """Write JSON, Markdown, one self-contained page, and a picture where the report has charts; return their paths.

    Each file is written whole or not at all. A picture of an earlier report is removed where this one has no charts.

    Args:
        report: to write; all its figures are finite.
        places: as :func:`report_places` gives them.

    Raises:
        UserError: a file cannot be written, or matplotlib is not installed.
    """
    texts = {
        "json": json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n",
        "md": document(report),
        "html": page(report),
    }
    for suffix, text in texts.items():
        place = places[suffix]
        try:
            with atomic_path(place) as path:
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{place} cannot be written: {error.strerror or error}") from error
    if not report.charts:
        places["png"].unlink(missing_ok=True)
        return [places[suffix] for suffix in texts]
    draw_charts(places["png"], report)
    return list(places.values())
