"""The files of a report: all of them, each once, and only over old ones when that is asked for."""

import dataclasses
import json

import pytest

from losatok_ext.errors import UserError
from losatok_ext.evaluation.reporting.pictures import draw_charts
from losatok_ext.evaluation.reporting.writing import report_places, write_report


def test_files_are_written_once(report, tmp_path):
    places = report_places(tmp_path, report.name, overwrite=False)
    assert write_report(report, places) == [tmp_path / f"thing.{suffix}" for suffix in ("json", "md", "html", "png")]
    assert json.loads(places["json"].read_text())["failures"] == [{"path": "bad.wav", "message": "bad.wav is <empty>"}]
    assert "| x\\|y | 1 ± 2 |" in places["md"].read_text()
    assert places["png"].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"thing\.json exists already; pass --overwrite"):
        report_places(tmp_path, report.name, overwrite=False)
    places = report_places(tmp_path, report.name, overwrite=True)
    written = write_report(dataclasses.replace(report, charts=[]), places)
    assert [path.suffix for path in written] == [".json", ".md", ".html"]
    assert not places["png"].exists()  # it showed the charts of the earlier report


def test_places_that_cannot_be_a_folder_are_refused(report, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; give the name of a folder"):
        report_places(tmp_path / "file", report.name, overwrite=True)
    with pytest.raises(UserError, match=r"out\.json is named like a file; give the name of a folder, such as .*out$"):
        report_places(tmp_path / "out.json", report.name, overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        write_report(report, report_places(tmp_path / "file" / "folder", report.name, overwrite=False))


def test_a_file_name_that_is_no_text_is_written(hostile, tmp_path):
    places = report_places(tmp_path, hostile.name, overwrite=False)
    write_report(hostile, places)
    for suffix in ("md", "html"):
        text = places[suffix].read_text(encoding="utf-8")
        assert "udcff.wav" in text
        assert "\x1b" not in text
    assert json.loads(places["json"].read_text())["name"] == hostile.values["name"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture(report, tmp_path, suffix):
    draw_charts(tmp_path / f"p{suffix}", report)
    assert (tmp_path / f"p{suffix}").read_bytes().startswith({".png": b"\x89PNG", ".svg": b"<?xml"}[suffix])
    with pytest.raises(UserError, match="cannot be drawn"):
        draw_charts(tmp_path / "p.bmp", report)
    with pytest.raises(ValueError, match="should have a chart"):
        draw_charts(tmp_path / "p.png", dataclasses.replace(report, charts=[]))
