"""On a machine with a GPU: build the CUDA kernels, test them, look for memory errors and races, and measure.

``make gpu-check`` runs the parts below, the most important first, and keeps the output of each in OUT. It may be
stopped at any moment: called again it goes on with the first part that is not done (``--again NAME`` repeats one). The
machine may have no network, so nothing is downloaded: the interpreter that runs this needs torch with CUDA, nvcc on
the PATH, scikit-build-core, pybind11, cmake, ninja, pytest, pytest-benchmark, pytest-timeout and hypothesis.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from parts import ROOT, Part, Record, run

NEEDED = ("torch", "scikit_build_core", "pybind11", "pytest", "pytest_benchmark", "pytest_timeout", "hypothesis")
FAMILIES = tuple(sorted(path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")))


def parts(results: Path) -> list[Part]:
    """What is run, the most important first; benchmarks keep their figures in ``results``."""
    python = sys.executable
    test = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    bench = (*test, "-p", "no:xdist", "--benchmark-only", "--bench-device", "cuda", "--bench-results", str(results))
    sanitize = ("compute-sanitizer", "--error-exitcode", "9", "--launch-timeout", "600")
    tiny = (*test, "-x", "tests/cuda/test_native_cuda.py", "-k", "tiny")
    built = ("build",)
    pip = (python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-e", ".")
    return [
        Part("build", pip),
        Part("native", (*test, "tests/cuda/test_native_cuda.py"), built),
        Part("triton", (*test, "tests/ops", "-m", "gpu", "-k", "triton"), built),
        *(Part(f"bench-{family}", (*bench, f"benchmarks/bench_{family}.py"), built) for family in FAMILIES),
        Part("memcheck", (*sanitize, "--tool", "memcheck", *tiny), built),
        Part("racecheck", (*sanitize, "--tool", "racecheck", *tiny), built),
        Part("suite", (*test, "tests"), built),
    ]


def check_machine() -> None:
    """Raise SystemExit with what is missing here."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"gpu-check needs {', '.join(missing)}: pip install them next to {sys.executable}")
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu-check needs a CUDA device, and torch sees none here")
    for tool in ("nvcc", "compute-sanitizer"):
        if shutil.which(tool) is None:
            raise SystemExit(f"gpu-check needs {tool}, which is not on the PATH")


def main() -> int:
    """Run the parts; 0 when all have passed, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "gpu-check", help="for logs and figures")
    parser.add_argument("--limit", type=float, default=560, help="seconds for this call")
    parser.add_argument("--again", nargs="*", default=[], help="parts to repeat")
    options = parser.parse_args()
    check_machine()
    os.environ["LOSATOK_CUDA"] = "1"
    record = Record(options.out)
    done = run(parts(options.out / "results"), record, options.limit, options.again)
    print(json.dumps(record.state, indent=1))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
