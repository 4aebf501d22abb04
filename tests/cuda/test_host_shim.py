"""The host shim finds what it is there to find: kernels with one mistake each, by the rule or the line that they break.

Races show in results under some order of threads, and always under ThreadSanitizer; memory errors under the address and
undefined behaviour sanitizers; broken rules everywhere. The kernels are those of tests/host_shim/broken_kernels.cu.
"""

import os
import re
import subprocess

import pytest

from host_shim import build
from host_shim.ops import ORDERS

SOURCE = build.SHIM / "broken_kernels.cu"
INPUT = [float(i) for i in range(128)]


def run(kernel, sanitizer="", order=0, seed=0):
    """(exit code, the program's first line, its outputs, what the sanitizer said)"""
    program = build.shim_program(SOURCE, sanitizer=sanitizer)
    # Fibers that a broken rule leaves behind never free what they hold.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program), kernel, str(order), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    said, _, values = done.stdout.partition("\n")
    return done.returncode, said, [float(v) for v in values.split()], done.stderr


def line_of(kernel, text):
    """Where ``text`` first stands in the kernel, as file:line."""
    lines = SOURCE.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if f"void {kernel}_kernel(" in line)
    return f"broken_kernels.cu:{next(i for i in range(start, len(lines)) if text in lines[i]) + 1}"


@pytest.mark.parametrize(("name", "order", "seed"), ORDERS)
def test_a_correct_kernel_is_right_in_every_order(name, order, seed):
    code, _, values, _ = run("correct", "", order, seed)
    assert code == 0
    assert values == INPUT[::-1]


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_a_correct_kernel_passes_the_sanitizers(sanitizer):
    code, _, values, said = run("correct", sanitizer)
    assert code == 0, said
    assert values == INPUT[::-1]


@pytest.mark.parametrize(("name", "order", "seed"), ORDERS)
def test_a_removed_barrier_shows_in_every_order(name, order, seed):
    code, _, values, _ = run("missing_barrier", "", order, seed)
    assert code == 0
    assert values != INPUT[::-1]


def test_a_barrier_removed_between_rounds_shows_in_some_order():
    right = [2 * x + 1 for x in INPUT[::-1]]
    results = {name: run("overwritten", "", order, seed)[2] for name, order, seed in ORDERS}
    assert any(values != right for name, values in results.items() if name.startswith("priority"))


def test_copies_that_nobody_waited_for_show():
    code, _, values, _ = run("missing_wait")
    assert code == 0
    assert values != INPUT


def test_an_assumed_layout_of_fragments_shows():
    code, _, values, _ = run("assumed_mapping")
    assert code == 0
    assert values[:16] != INPUT[:16]


@pytest.mark.parametrize(
    ("kernel", "message", "text"),
    [
        ("divergent_barrier", "a divergent barrier: some threads are at {}", "__syncthreads"),
        ("early_return", "deadlock in block 0: thread 0 waits at the barrier {}, but thread 5 has returned", "__sync"),
        ("half_warp", "a partial mask at {}: kernels use full warps", "__shfl"),
        ("lost_lanes", "thread 0 waits at the warp collective {}, but thread 127 has returned", "__shfl"),
        ("forgotten_copy", "thread 0 returned with asynchronous copies in flight", None),
    ],
)
def test_a_broken_rule_is_reported_with_its_place(kernel, message, text):
    code, said, _, _ = run(kernel)
    assert code == 1
    assert message.format(line_of(kernel, text) if text else "") in said


@pytest.mark.parametrize("kernel", ["missing_barrier", "overwritten", "missing_wait", "race", "block_race"])
def test_thread_sanitizer_reports_races_by_line(kernel):
    code, _, _, said = run(kernel, "tsan")
    assert code == 66, "ThreadSanitizer's own exit code"
    assert re.search(rf"SUMMARY: ThreadSanitizer: data race .*broken_kernels\.cu:\d+ in {kernel}_kernel", said)


@pytest.mark.parametrize(
    ("kernel", "message", "text"),
    [
        ("past_the_end", "AddressSanitizer: heap-buffer-overflow", "values[threadIdx.x + 8]"),
        ("past_the_array", "runtime error: index 128 out of bounds for type 'float [128]'", "values[threadIdx.x + 1]"),
        ("misaligned", "misaligned address", "float4 four"),
    ],
)
def test_address_and_undefined_behaviour_sanitizers_report_bad_accesses(kernel, message, text):
    code, _, _, said = run(kernel, "asan")
    assert code not in (0, -1)
    assert message in said
    assert line_of(kernel, text) in said
