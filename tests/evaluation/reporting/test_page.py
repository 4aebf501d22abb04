"""The page: whole, well formed, without a link to anywhere, and its charts drawn to scale."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import soundfile
import torch

from losatok_ext.errors import UserError
from losatok_ext.evaluation.reporting.charts import svg
from losatok_ext.evaluation.reporting.page import page
from losatok_ext.evaluation.reporting.report import (
    Bar,
    BarChart,
    Example,
    Figure,
    LineChart,
    Report,
    Table,
    mean_and_spread,
    report_places,
    with_spread,
    write_report,
)
from losatok_ext.evaluation.reporting.sounds import make_sound
from losatok_ext.recordings.find import Failure
from small_models import tone

BARS = BarChart("A <chart>", [Bar("one & two", 1.5, 0.5), Bar("less", -0.25), Bar("none", 0.0)], "unit", (1.0, "here"))
LINES = LineChart("Lines", {"up": [(1, 0.0), (10, 0.5), (100, 1.0)], "flat": [(1, 0.5), (100, 0.5)]}, "x", "y", True)
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def report():
    sounds = [make_sound(name, tone(8_000, seed), 16_000) for seed, name in enumerate(("one", "two"))]
    table = Table("A | table", ["", "a"], [["x|y", "1 ± 2"], ["<b>", "–"]], "a note")
    return Report(
        "thing",
        "A <title>",
        {"model": "<&>"},
        {"value": 1.0},
        [Figure("figure", "1", "note")],
        [table, Table("Folded", ["", "b"], [["row", "2"]], folded=True)],
        [BARS, LINES],
        [Example("<clip>", "facts", sounds)],
        ["a note & more"],
        [Failure(Path("bad.wav"), "bad.wav is <empty>")],
    )


class Strict(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody(report):
    text = page(report)
    parser = Strict()
    parser.feed(text)
    assert not parser.open
    assert len(parser.sources) == 4
    assert all(source.startswith("data:") for source in parser.sources)
    assert not re.search(r"https?://|url\(|@import|fetch\(", text)
    for given in ("A <title>", "<clip>", "bad.wav is <empty>", "A <chart>"):
        assert given not in text
        assert given.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "prefers-color-scheme:dark" in text


def test_a_folded_table_is_on_the_page_alone(report):
    assert "<details><summary>Folded</summary>" in page(report)
    assert "Folded" not in report.markdown()


def test_players_hold_the_audio_and_pictures_the_spectrogram(report):
    sources = re.findall(r'src="data:(audio/flac|image/png);base64,([^"]+)"', page(report))
    assert [kind for kind, _ in sources] == ["image/png", "audio/flac"] * 2
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(sources[1][1])), dtype="float32")
    assert rate == 16_000
    torch.testing.assert_close(torch.from_numpy(audio), tone(8_000, 0), rtol=0, atol=2**-15)
    picture = base64.b64decode(sources[0][1])
    assert picture.startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (51, 80)


def test_long_and_loud_audio_is_cut_and_clipped():
    sound = make_sound("x", 4 * tone(20 * 16_000), 16_000)
    audio, _ = soundfile.read(io.BytesIO(sound.audio))
    assert len(audio) == 12 * 16_000
    assert sound.seconds == 12
    assert abs(audio).max() == pytest.approx(1, abs=1e-4)


def test_bars_are_drawn_to_scale():
    root = ElementTree.fromstring(svg(BARS))
    bars = [(float(bar.get("x")), float(bar.get("width"))) for bar in root.iter("rect")]
    zero = bars[0][0]
    assert bars[0][1] / 1.5 == pytest.approx(bars[1][1] / 0.25, rel=0.02)
    assert bars[1][0] + bars[1][1] == pytest.approx(zero, abs=0.11)
    (mark,) = [line for line in root.iter("line") if line.get("class") == "mark"]
    assert float(mark.get("x1")) == pytest.approx(zero + bars[0][1] / 1.5, abs=0.2)
    assert "one & two" in [text.text for text in root.iter("text")]


def test_an_axis_ends_at_its_limit():
    root = ElementTree.fromstring(svg(BarChart("c", [Bar("a", 90.0, 20.0)], limit=100.0)))
    ends = [float(line.get("x2")) for line in root.iter("line")]
    assert max(ends) == pytest.approx(640 - 78, abs=0.1)
    assert "100" in [text.text for text in root.iter("text")]
    assert "125" not in [text.text for text in root.iter("text")]


def test_lines_are_drawn_to_scale():
    root = ElementTree.fromstring(svg(LINES))
    up, flat = (
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in root.iter("polyline")
    )
    assert up[1][0] - up[0][0] == pytest.approx(up[2][0] - up[1][0], abs=0.2)  # a decade each
    assert up[0][1] - up[1][1] == pytest.approx(up[1][1] - up[2][1], abs=0.2)
    assert flat[0] == (up[0][0], up[1][1])
    assert {"1", "10", "100"} <= {text.text for text in root.iter("text")}


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-6, 3e-6], [12_345.0, 99_999.0], [-3.0, -1.0], [5.0]])
def test_charts_of_any_range_stay_inside(values):
    bars = svg(BarChart("c", [Bar(str(i), v, abs(v) / 3) for i, v in enumerate(values)]))
    lines = svg(LineChart("c", {"l": list(enumerate(values, 1))}, "x", "y"))
    for text in (bars, lines):
        root = ElementTree.fromstring(text)
        width, height = map(float, root.get("viewBox").split()[2:])
        for element in root.iter():
            assert all(-1 <= float(element.get(name, 0)) <= width for name in ("x", "x1", "x2", "cx"))
            assert all(-1 <= float(element.get(name, 0)) <= height for name in ("y", "y1", "y2", "cy"))


def test_files_are_written_once(report, tmp_path):
    places = report_places(tmp_path, report.name, overwrite=False)
    write_report(report, places)
    assert json.loads(places["json"].read_text())["failures"] == [{"path": "bad.wav", "message": "bad.wav is <empty>"}]
    assert "| x\\|y | 1 ± 2 |" in places["md"].read_text()
    with pytest.raises(UserError, match=r"thing\.json exists already; pass --overwrite"):
        report_places(tmp_path, report.name, overwrite=False)
    report_places(tmp_path, report.name, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(report, report_places(tmp_path / "file", report.name, overwrite=False))


def test_means_and_spreads():
    assert mean_and_spread([None, 1.0, 3.0]) == (2.0, pytest.approx(2**0.5), 2)
    assert mean_and_spread([4.0]) == (4.0, None, 1)
    assert mean_and_spread([None]) == (None, None, 0)
    assert (with_spread(None, None), with_spread(1.0, None, 1), with_spread(1.0, 0.25, 2)) == (
        "–",
        "1.0",
        "1.00 ± 0.25",
    )
