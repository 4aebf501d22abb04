#!/usr/bin/env python3
"""Run the op tests, and every raw op with wrong arguments, on native ops that watch their own memory.

    python tools/sanitize.py                # make sanitize: once for each release
    python tools/sanitize.py -k attention   # only tests of that name

Builds the native ops of the CPU with AddressSanitizer and UndefinedBehaviorSanitizer into WORK/venv, and leaves what
is installed as it is. It runs tests/ops (without torch.compile and Triton) and tests/ops/hostile_calls.py on them, for
each instruction set that this processor has. torch's tensors are watched too: they are allocated by the same functions.
First it reads past the end of a tensor, and overflows a number, on purpose: what would not be noticed could not be
found. Exit code 1 where a sanitizer found something or a test failed.

Needs g++ with libasan and libubsan, and what `make test` installs.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
from parts import ROOT

from instruction_sets import LEVELS as PROCESSORS
from instruction_sets import features_of_the_processor
from machine import commit

FLAGS = (
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize=vptr",  # torch's libraries do not export what that needs
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g1",
)
PROBE = """
extern "C" float past_the_end(const float* x, long n) { return x[n]; }
extern "C" int overflow(int x) { return x + 1; }
"""
PROBES = {
    "heap-buffer-overflow": "library.past_the_end(ctypes.c_void_p(x.data_ptr()), x.numel())",
    "signed integer overflow": "library.overflow(2**31 - 1)",
}
"""What a sanitizer says of each mistake that is made on purpose."""
LEVELS = ("default", "avx2", "avx512")
FOUND = re.compile(r"ERROR: AddressSanitizer|runtime error:")


def runtime(compiler: str, name: str) -> str:
    """The path of a library of the compiler.

    Raises:
        SystemExit: the compiler has none.
    """
    command = [*shlex.split(compiler), f"-print-file-name={name}"]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(path):
        raise SystemExit(f"{compiler} has no {name}; install the sanitizers of your compiler, or set CXX to g++")
    return os.path.realpath(path)


def environment(work: Path, compiler: str, level: str) -> dict[str, str]:
    """The variables under which the ops are watched; ``level`` caps their instruction set."""
    options = f"halt_on_error=1:print_stacktrace=1:log_path={work / 'reports' / level}"
    return {
        **os.environ,
        # Python itself is not built with the sanitizers, so that their libraries have to be there before it begins.
        "LD_PRELOAD": " ".join(runtime(compiler, name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")),
        # Python and torch keep memory until the end. Hostile sizes are refused by returning none.
        "ASAN_OPTIONS": f"{options}:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": options,
        "LOSATOK_ISA": level,
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def build(work: Path, compiler: str) -> Path:
    """Build the package with :data:`FLAGS`, and return a Python that imports it and everything else of this one."""
    python = work / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(work / "venv")], check=True)
    (site,) = (work / "venv").glob("lib/python3.*/site-packages")
    places = [path for path in sys.path if path.endswith("site-packages")]
    # As plain folders: the .pth files in them, which would bring the package of this environment, are not read.
    (site / "others.pth").write_text("\n".join(places) + "\n")
    flags = " ".join(FLAGS)
    variables = {**os.environ, "CXXFLAGS": flags, "LDFLAGS": flags, "CXX": compiler, "LOSATOK_CUDA": "0"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-build-isolation"]
    target = ["--no-deps", "--upgrade", "--target", str(site), "-C", f"build-dir={work / 'build'}", str(ROOT)]
    subprocess.run([*pip, *target], check=True, env=variables)
    return python


def prove(python: Path, work: Path, compiler: str, level: str, variables: Mapping[str, str]) -> None:
    """Check that the watched module is the one that is loaded, with the kernels of ``level``, and that each of
    :data:`PROBES` becomes a finding.

    Raises:
        SystemExit: not so.
    """
    code = "from losatok_ext import _native; print(_native.module.__file__, _native.module.instruction_set())"
    found = subprocess.run([str(python), "-c", code], env=variables, cwd=work, capture_output=True, text=True)
    file, loaded = found.stdout.split() if found.stdout else ("", "")
    if work not in Path(file).parents or b"__asan_init" not in Path(file).read_bytes():
        raise SystemExit(f"the watched ops were not loaded, but {file!r}\n{found.stderr[-3000:]}")
    if loaded != level:
        raise SystemExit(f"asked for the kernels of {level}, got those of {loaded}")
    source, library = work / "probe.cpp", work / "probe.so"
    source.write_text(PROBE)
    subprocess.run([*shlex.split(compiler), *FLAGS, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    for says, call in PROBES.items():
        code = f"import ctypes, torch; library = ctypes.CDLL({str(library)!r}); x = torch.ones(1000); {call}"
        done = subprocess.run([str(python), "-c", code], env=variables, cwd=work, capture_output=True, text=True)
        if done.returncode == 0 or not any(says in text for text in findings(work, done.stdout, done.stderr)):
            raise SystemExit(f"a {says} on purpose was not noticed: {done.stderr[-2000:]}")
        forget(work)


def findings(work: Path, *outputs: str) -> list[str]:
    """What the sanitizers have found, without repetitions: AddressSanitizer writes files, the other to ``outputs``."""
    written = (path.read_text(errors="replace") for path in sorted((work / "reports").glob("*")))
    found = []
    for text in (*written, *outputs):
        if match := FOUND.search(text):
            found.append(text[max(0, match.start() - 200) :][:6000])
    return list(dict.fromkeys(found))


def forget(work: Path) -> None:
    """Remove the reports of earlier runs."""
    for old in (work / "reports").glob("*"):
        old.unlink()


def watch(python: Path, level: str, tests: Sequence[str], variables: Mapping[str, str]) -> tuple[bool, list[str]]:
    """Run the tests and the hostile calls on ``level``: whether all of them passed, and what they have written."""
    # -s: what a worker writes before a sanitizer ends it would be lost with it.
    options = ["-q", "-s", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider"]
    # Sanitizers keep freed memory for a while, and so the memory of a process tells nothing.
    options += ["--ignore-glob=*/test_triton_*", "--ignore-glob=*_memory.py"]
    commands = {
        "tests": [str(python), "-m", "pytest", *options, *tests],
        "hostile calls": [str(python), "-m", "ops.hostile_calls", "native"],
    }
    passed, outputs = True, []
    for what, command in commands.items():
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT / "tests", env=variables, capture_output=True, text=True)
        last = (done.stdout.strip().splitlines() or [done.stderr[-2000:]])[-1]
        print(f"{level}, {what}: {last} ({time.monotonic() - began:.0f} s, exit code {done.returncode})", flush=True)
        outputs += [done.stdout, done.stderr]
        if done.returncode != 0:
            passed = False
            print(done.stdout[-6000:], done.stderr[-3000:], sep="\n", flush=True)
    return passed, outputs


def main() -> int:
    """Build, prove, run; 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--work", type=Path, default=ROOT / "build" / "sanitize", help="folder of the build")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS, help="instruction sets")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only tests of these names, as pytest takes it")
    options = parser.parse_args()
    work, compiler = options.work.resolve(), os.environ.get("CXX", "g++")
    (work / "reports").mkdir(parents=True, exist_ok=True)
    forget(work)
    print(f"commit {commit()}", flush=True)
    python = build(work, compiler)
    # Watched loops add one number after the other. The bound of one test is for sums of several parts, as usual builds
    # make them.
    chosen = "not compile and not test_mean_far_above_the_spread" + (f" and ({options.k})" if options.k else "")
    needs = {level.name: level.needs for level in PROCESSORS}
    features = features_of_the_processor()
    clean, outputs, ran = True, [], 0
    for level in options.levels:
        if lacking := [name for name in needs[level] if name not in features]:
            print(f"{level}: left out, this processor has no {', '.join(lacking)}", flush=True)
            continue
        variables = environment(work, compiler, level)
        prove(python, work, compiler, level, variables)
        passed, written = watch(python, level, ["ops", "-k", chosen], variables)
        clean, outputs, ran = clean and passed, outputs + written, ran + 1
    found = findings(work, *outputs)
    for text in found:
        print(text)
    print(f"{ran} instruction sets, {len(found)} findings" + ("" if clean else ", failed tests"))
    return 0 if clean and ran and not found else 1


if __name__ == "__main__":
    sys.exit(main())
