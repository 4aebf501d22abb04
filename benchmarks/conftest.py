"""One way to benchmark an op: side by side with its peers and the machine's ceiling, in the same run.

``compare`` times the op and its peers in turn, hands the op to pytest-benchmark, records ratios in ``extra_info`` and
prints a table of all comparisons at the end. ``--bench-device`` chooses cpu or cuda (default: cuda where there is one),
``--bench-budget`` the seconds for each comparison, and ``--bench-results DIR`` keeps the table as
DIR/<device>/<date>.json, which report.py reads; rows of the same day's earlier runs stay unless measured again.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch

from losatok_ext.evaluation.tasks.ceiling import Ceiling, matrix_ceiling
from losatok_ext.evaluation.tasks.side_by_side import interleave, peak_memory
from machine import commit, device_slug, machine_name

ROWS = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--bench-device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.addoption("--bench-budget", type=float, default=2.0, help="seconds for each comparison")
    parser.addoption("--bench-results", type=Path, help="folder to keep the figures in")


def pytest_configure(config):
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def device(request):
    return request.config.getoption("--bench-device")


@pytest.fixture
def compare(benchmark, request, device):
    """compare(label, ours, peers, flop=None, dtype=torch.float32, memory=False, rounds=7) -> {name: Timing}.

    ``peers`` maps names to functions of no arguments. ``flop`` is what the products alone need, for the share of the
    ceiling of ``dtype``, the narrowest dtype in which the op computes products. With ``memory``, peak memory is
    compared as well. ``rounds`` are the least number of them; fewer than 7 are for what takes seconds.
    """
    config = request.config

    def run(
        label: str,
        ours: Callable[[], object],
        peers: dict[str, Callable[[], object]],
        flop: float | None = None,
        dtype: torch.dtype = torch.float32,
        memory: bool = False,
        rounds: int = 7,
    ):
        timings = interleave({"ours": ours, **peers}, device, config.getoption("--bench-budget"), rounds)
        benchmark.pedantic(ours, rounds=min(3, rounds - 1), warmup_rounds=1 if rounds >= 7 else 0)
        best = timings["ours"].best
        row = {"label": label, "ours_us": round(best * 1e6, 1)}
        row |= {f"{name}_us": round(timing.best * 1e6, 1) for name, timing in timings.items() if name != "ours"}
        row |= {f"x_{name}": round(timing.best / best, 3) for name, timing in timings.items() if name != "ours"}
        row |= {
            f"x_{name}_median": round(timing.median / timings["ours"].median, 3)
            for name, timing in timings.items()
            if name != "ours"
        }
        if flop is not None:
            row["tflops"] = round(flop / best / 1e12, 4)
            row["ceiling_share"] = round(flop / best / matrix_ceiling(dtype, device).flop_per_second, 3)
        if memory:
            row["ours_mib"] = round(peak_memory(ours, device) / 2**20, 1)
            row |= {f"{name}_mib": round(peak_memory(peer, device) / 2**20, 1) for name, peer in peers.items()}
        benchmark.extra_info.update(row)
        config.stash[ROWS].append(row)
        return timings

    return run


def keep(folder: Path, device: str, rows: list[dict], ceilings: dict[str, Ceiling]) -> Path:
    """Write ``rows`` to ``folder``/<device>/<date>.json, beside what the same day's earlier runs measured."""
    path = folder / device_slug(device) / f"{date.today()}.json"
    measured = commit()
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {row["label"]: row for row in before} | {row["label"]: row | {"commit": measured} for row in rows}
    result = {
        "machine": machine_name(device),
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": str(date.today()),
        "commit": measured,
        "ceilings": {dtype: ceiling.flop_per_second for dtype, ceiling in ceilings.items()},
        "ceiling_libraries": {dtype: ceiling.library for dtype, ceiling in ceilings.items()},
        "rows": list(merged.values()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    device = config.getoption("--bench-device")
    ceilings = {
        str(dtype).removeprefix("torch."): matrix_ceiling(dtype, device) for dtype in (torch.float32, torch.bfloat16)
    }
    write = terminalreporter.write_line
    terminalreporter.section("side by side (best of all rounds; ratios: peer's time over ours)")
    write(
        f"{machine_name(device)}, torch {torch.__version__}, {torch.get_num_threads()} threads, {date.today()}; "
        "matrix ceiling: " + ", ".join(f"{dtype} {ceiling}" for dtype, ceiling in ceilings.items())
    )
    for row in rows:
        peers = [key.removeprefix("x_") for key in row if key.startswith("x_") and not key.endswith("_median")]
        text = f"{row['label']:<44}{row['ours_us']:>12.1f} us"
        if "ceiling_share" in row:
            text += f"  {100 * row['ceiling_share']:>4.0f} % of ceiling"
        text += "".join(f"  {name} {row[f'x_{name}']:.2f}x (median {row[f'x_{name}_median']:.2f}x)" for name in peers)
        if "ours_mib" in row:
            text += f"  peak {row['ours_mib']:.1f} MiB" + "".join(
                f", {name} {row[f'{name}_mib']:.1f}" for name in peers
            )
        write(text)
    if folder := config.getoption("--bench-results"):
        write(f"kept in {keep(folder, device, rows, ceilings)}")
