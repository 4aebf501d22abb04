"""Every CUDA launcher on tiny shapes under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer."""

import re
import subprocess

import pytest

from host_shim import build


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "orders"),
    [("asan", [(0, 0), (1, 0), (2, 1)]), ("tsan", [(2, 1)])],
)
def test_kernels_are_clean(sanitizer, orders):
    program = build.shim_program(*build.ALL_KERNELS, *build.KERNELS, sanitizer=sanitizer)
    for order, seed in orders:
        command = [str(program), str(order), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"order {order}, seed {seed}: {done.stdout}{done.stderr[-6000:]}"
        assert re.search(r"^ok: \d+ launches$", done.stdout, re.MULTILINE)


def test_no_launcher_is_left_out():
    declared = set()
    for header in (build.CSRC / "cuda").glob("*.h"):
        declared |= set(re.findall(r"^cudaError_t (\w+)\(", header.read_text(), re.MULTILINE))
    launches = "".join(path.read_text() for path in build.ALL_KERNELS)
    called = set(re.findall(r"\bcheck\(\s*(\w+)\(", launches))
    assert declared
    assert declared == called
