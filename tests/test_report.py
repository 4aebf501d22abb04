"""make report: what was measured goes into the documents, and only that."""

import json
import re

import pytest

import report
from targets import TARGETS, Target

ROW = {"label": "an op", "ours_us": 1500.0, "eager_us": 3000.0, "x_eager": 2.0, "x_eager_median": 1.9}
ROW |= {"ceiling_share": 0.63, "ours_mib": 4.0, "eager_mib": 16.0}
RESULT = {
    "machine": "a machine",
    "device": "cpu",
    "torch": "2.13.0",
    "threads": 2,
    "date": "2026-11-25",
    "commit": "abc",
    "ceilings": {"float32": 1.8e11},
    "rows": [ROW],
}


def test_a_row_tells_time_ratio_share_and_memory():
    line = report.measured_rows(RESULT).splitlines()[-1]
    assert line == "| an op | 1.5 ms | 2.00x eager | 63 % | 4 MiB, eager 16 |"


@pytest.mark.parametrize(
    ("figure", "value", "measured", "met"),
    [
        ("x_eager", 2.0, 2.0, True),
        ("x_eager", 2.01, 2.0, False),
        ("x_compile", 1.0, None, False),
        ("memory_eager", 3.0, 4.0, True),
        ("memory_eager", 5.0, 4.0, False),
        ("seconds", 0.002, 0.0015, True),
        ("seconds", 0.001, 0.0015, False),
        ("mib", 3, 4.0, False),
    ],
)
def test_a_target_is_met_or_not_or_not_measured(monkeypatch, figure, value, measured, met):
    target = Target("an op", figure, value)
    assert target.measured(ROW) == measured
    monkeypatch.setattr(report, "TARGETS", [target])
    line = report.targets_table(RESULT).splitlines()[-1]
    assert line.endswith("| met |" if met else "| not measured |" if measured is None else "| **missed** |")


def test_the_machine_is_told_with_its_ceiling_and_the_library_that_reached_it():
    assert report.machine(RESULT).endswith("matrix ceiling of the run: float32 180 GFLOP/s")
    told = report.machine(RESULT | {"ceiling_libraries": {"float32": "oneDNN"}})
    assert told.endswith("matrix ceiling of the run: float32 180 GFLOP/s (oneDNN)")


def test_a_target_without_its_row_is_not_measured():
    line = report.targets_table(RESULT).splitlines()[2]
    assert line.startswith(f"| {TARGETS[0].label} |")
    assert line.endswith("| not measured |")


def test_documents_are_filled_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured: rows -->\nold\n<!-- end -->\nafter\n")
    for _ in range(2):
        report.fill(page, {"rows": "new"})
        assert page.read_text() == "before\n<!-- measured: rows -->\nnew\n<!-- end -->\nafter\n"
    with pytest.raises(SystemExit, match="asks for 'rows'"):
        report.fill(page, {"other": ""})
    page.write_text("<!-- measured: rows -->\n")
    with pytest.raises(SystemExit, match="without its 'end'"):
        report.fill(page, {"rows": ""})


def test_precisions_are_a_table_for_each_model(tmp_path):
    row = {"token_error": 0.01, "worst_token_error": 0.02, "cosine": 0.999, "snr": None, "decoder_snr": 40.0}
    row |= {"mel_loss": 0.1, "encode_seconds": 0.2, "decode_seconds": 0.05, "encode_speed": 4, "decode_speed": 5}
    row |= {"dtype": "int8", "bytes": 2**20, "peak_bytes": 2**21}
    for name in ("a", "b"):
        path = tmp_path / "cpu" / "precision" / name / "precision.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"model": f"Model {name}", "machine": "a machine", "date": "today", "recordings": 2, "seconds": 3.0}
        path.write_text(json.dumps({**values, "rows": [row], "failures": []}))
    text = report.precision_tables(tmp_path)
    line = "| int8 | 1.00 % | 2.00 % | 0.99900 | exact | 40.0 dB | 0.100 | 200 ms (4.00x) | 50.0 ms (5.00x) | "
    assert text.count(f"{line}1.0 MiB | 2 MiB |\n\nModel ") == 2
    assert text.index("Model a; 2 recordings, 3.0 s. a machine, today.") < text.index("Model b;")


def test_the_sources_of_ops_hold_no_figures():
    for path in (report.ROOT / "python/losatok_ext/ops").rglob("*.py"):
        assert not re.search(r"measured:|\d\.\d+x (eager|compile)", path.read_text()), path


def test_the_newest_result_of_each_device_counts(tmp_path):
    for device, day in (("a", "2026-11-24"), ("a", "2026-11-25"), ("b", "2026-11-20")):
        path = tmp_path / device / f"{day}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(RESULT | {"date": day}))
    assert [result["date"] for result in report.load(list(tmp_path.glob("*/*.json")))] == ["2026-11-25", "2026-11-20"]


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    report.draw(RESULT, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
