#!/usr/bin/env python3
"""Run the op tests, and every raw op with wrong arguments, on native ops that watch their own memory.

    python tools/sanitize.py                # make sanitize: once for each release
    python tools/sanitize.py -k attention   # only tests of that name

Builds the native ops of the CPU with AddressSanitizer and UndefinedBehaviorSanitizer into WORK/site, with none of what
is installed touched, and runs tests/ops (without torch.compile and Triton) and tests/ops/hostile_calls.py on them, for
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

sys.path.insert(0, str(Path(__file__).parent))
from parts import ROOT

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


def prove(python: Path, work: Path, compiler: str, variables: Mapping[str, str]) -> None:
    """Check that the watched module is the one that is loaded, and that a sanitizer notices each of :data:`PROBES`.

    Raises:
        SystemExit: not so.
    """
    code = "from losatok_ext import _native; print(_native.module.__file__, _native.module.instruction_set())"
    found = subprocess.run([str(python), "-c", code], env=variables, cwd=work, capture_output=True, text=True)
    file = found.stdout.split()[0] if found.stdout else ""
    if work not in Path(file).parents or b"__asan_init" not in Path(file).read_bytes():
        raise SystemExit(f"the watched ops were not loaded, but {file!r}\n{found.stderr[-3000:]}")
    source, library = work / "probe.cpp", work / "probe.so"
    source.write_text(PROBE)
    subprocess.run([*shlex.split(compiler), *FLAGS, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    for says, call in PROBES.items():
        code = f"import ctypes, torch; library = ctypes.CDLL({str(library)!r}); x = torch.ones(1000); {call}"
        clean = {**variables, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": ""}
        done = subprocess.run([str(python), "-c", code], env=clean, cwd=work, capture_output=True, text=True)
        if done.returncode == 0 or says not in done.stderr:
            raise SystemExit(f"a {says} on purpose was not noticed: {done.stderr[-2000:]}")


def has(level: str) -> bool:
    """Whether this processor has what ``level`` needs."""
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    except OSError:
        return level == "default"
    needs = {"default": set(), "avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512dq"}}
    return needs[level] <= flags


def reports(work: Path) -> list[str]:
    """What the sanitizers have found, without repetitions."""
    texts = (path.read_text(errors="replace") for path in sorted((work / "reports").glob("*")))
    return list(dict.fromkeys(text for text in texts if FOUND.search(text)))


def watch(python: Path, level: str, tests: Sequence[str], variables: Mapping[str, str]) -> bool:
    """Run the tests and the hostile calls on ``level``; whether all of them passed."""
    options = ["-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider"]
    # Sanitizers keep freed memory for a while, and so the memory of a process tells nothing.
    options += ["--ignore-glob=*/test_triton_*", "--ignore-glob=*_memory.py"]
    commands = {
        "tests": [str(python), "-m", "pytest", *options, *tests],
        "hostile calls": [str(python), "-m", "ops.hostile_calls", "native"],
    }
    passed = True
    for what, command in commands.items():
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT / "tests", env=variables, capture_output=True, text=True)
        last = (done.stdout.strip().splitlines() or [done.stderr[-2000:]])[-1]
        print(f"{level}, {what}: {last} ({time.monotonic() - began:.0f} s, exit code {done.returncode})", flush=True)
        if done.returncode != 0:
            passed = False
            print(done.stdout[-6000:], done.stderr[-3000:], sep="\n", flush=True)
    return passed


def main() -> int:
    """Build, prove, run; 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--work", type=Path, default=ROOT / "build" / "sanitize", help="folder of the build")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS, help="instruction sets")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="only tests of these names, as pytest takes it")
    options = parser.parse_args()
    work, compiler = options.work.resolve(), os.environ.get("CXX", "g++")
    (work / "reports").mkdir(parents=True, exist_ok=True)
    for old in (work / "reports").glob("*"):
        old.unlink()
    python = build(work, compiler)
    # Watched loops add one number after the other. The bound of one test is for sums of several parts, as usual builds
    # make them.
    chosen = "not compile and not test_mean_far_above_the_spread" + (f" and ({options.k})" if options.k else "")
    clean = True
    for level in options.levels:
        if not has(level):
            print(f"{level}: left out, this processor does not have it", flush=True)
            continue
        variables = environment(work, compiler, level)
        prove(python, work, compiler, variables)
        clean = watch(python, level, ["ops", "-k", chosen], variables) and clean
    found = reports(work)
    for text in found:
        print(text[:6000])
    print(f"{len(found)} findings" if found else "no findings")
    return 0 if clean and not found else 1


if __name__ == "__main__":
    sys.exit(main())
