"""Every CUDA launcher on tiny shapes under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer.

Compiled and run here only where the sources are not those of the run that docs/kernels.json keeps (make evidence).
"""

import re

import pytest

import kernel_evidence as evidence
from host_shim import build, sanitizers


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", sanitizers.SCHEDULES)
def test_kernels_are_clean(sanitizer):
    if not evidence.sanitizer_unchanged(sanitizer):
        assert sanitizers.launches(sanitizer) > 0


def test_no_launcher_is_left_out():
    declared = set()
    for header in (build.CSRC / "cuda").glob("*.h"):
        declared |= set(re.findall(r"^cudaError_t (\w+)\(", header.read_text(), re.MULTILINE))
    launches = "".join(path.read_text() for path in build.ALL_KERNELS)
    called = set(re.findall(r"\bcheck\(\s*(\w+)\(", launches))
    assert declared
    assert declared == called
