"""Compiles CUDA sources for tests: with a C++ compiler through the host shim, and with nvcc.

Objects and programs lie under build/host_shim, named by a hash of their source, the headers and the command line:
a second run of the tests compiles nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
SHIM = ROOT / "tests" / "host_shim"
CACHE = ROOT / "build" / "host_shim"

KERNELS = tuple(sorted((CSRC / "cuda").glob("*.cu")))
ALL_KERNELS = (SHIM / "all_kernels.cpp", *sorted((SHIM / "launches").glob("*.cpp")))
"""A program that launches every kernel, without the kernels."""
RUNTIME = (SHIM / "fibers.cpp", SHIM / "runtime.cpp")
BINDINGS = tuple(sorted((CSRC / "cuda").glob("bindings*.cpp")))

_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)', re.MULTILINE)

# -g1: functions and lines, which reports name, in two thirds of the time that all of -g takes
SANITIZERS = {
    "": [],
    "asan": ["-fsanitize=address,undefined", "-fsanitize=bounds-strict", "-fno-sanitize-recover=all", "-g1", "-O1"],
    "tsan": ["-fsanitize=thread", "-g1", "-O1"],
}

WITH_HOST_CODE = 90
"""The architecture that nvcc compiles host code for as well, which is the same for each."""


class CompileError(RuntimeError):
    """A compiler said no; the message holds the command and what it said."""


@cache
def nvcc() -> str | None:
    """The nvcc to test with, or None."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


@cache
def cuda_include() -> Path | None:
    """The folder of cuda_runtime_api.h, as nvcc names it, or None."""
    compiler = nvcc()
    if compiler is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cu") as empty:
        said = subprocess.run([compiler, "--dryrun", "-c", empty.name], capture_output=True, text=True).stderr
    folders = [Path(f) for f in re.findall(r'-I([^"\s]+)', said)]
    return next((f.resolve() for f in folders if (f / "cuda_runtime_api.h").is_file()), None)


def missing() -> str | None:
    """Why CUDA sources cannot be compiled here, or None."""
    if nvcc() is None:
        return "nvcc was not found (put it on PATH or set CUDA_HOME)"
    if cuda_include() is None:
        return "nvcc is there, but not cuda_runtime_api.h"
    if shutil.which("g++") is None:
        return "g++ was not found"
    return None


def run(command: list[str]) -> str:
    """Run ``command`` and return what it said; CompileError where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def sources_of(source: Path) -> list[Path]:
    """``source`` and what it includes of this repository where there is no host shim."""
    return [source, *(path for path in included(source) if CSRC in path.parents)]


def included(source: Path) -> list[Path]:
    """The headers of this repository that ``source`` includes, and those that they do."""
    found: dict[Path, None] = {}
    waiting = [source]
    while waiting:
        for name in _INCLUDE.findall(waiting.pop().read_text()):
            path = next((f / name for f in (CSRC, SHIM, SHIM / "include") if (f / name).is_file()), None)
            if path is not None and path not in found:
                found[path] = None
                waiting.append(path)
    return sorted(found)


def _key(command: list[str], source: Path) -> str:
    read = (source, *included(source)) if "-DLOSATOK_HOST_SHIM" in command else sources_of(source)
    texts = [path.read_bytes() for path in read]
    parts = [_version(command[0]).encode(), " ".join(command).encode(), *texts]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def compile_object(command: list[str], source: Path, kind: str = "-c") -> tuple[Path, str]:
    """``command`` (without ``kind`` and -o) applied to ``source``: the object file and what the compiler said."""
    target = CACHE / f"{source.stem}-{_key([*command, kind, str(source.name)], source)}.o"
    log = target.with_suffix(".log")
    if not (target.is_file() and log.is_file()):
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            temporary = Path(folder) / target.name
            said = run([*_through_ccache(command), kind, str(source), "-o", str(temporary)])
            written = temporary.with_suffix(".log")
            written.write_text(said)
            written.replace(log)
            temporary.replace(target)
    return target, log.read_text()


def _through_ccache(command: list[str]) -> list[str]:
    """``command`` of g++ through ccache, where that is installed: a second checkout finds what the first compiled."""
    ccache = shutil.which("ccache")
    if ccache is None or command[0] != "g++":
        return command
    return ["env", f"CCACHE_BASEDIR={ROOT}", "CCACHE_NOHASHDIR=1", ccache, *command]


def _common() -> list[str]:
    flags = ["-std=c++20", "-O2", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-DLOSATOK_HOST_SHIM", f"-I{SHIM}/include"]
    return [*flags, f"-I{SHIM}", f"-I{CSRC}", "-isystem", str(cuda_include())]


def _torch_flags() -> list[str]:
    flags = [f for path in cpp_extension.include_paths() for f in ("-isystem", path)]
    return [*flags, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]


def shim_object(source: Path, sanitizer: str = "") -> Path:
    """``source`` as an object file; a .cu goes through the shim. Fibers speak to sanitizers by hand, uninstrumented."""
    flags = _common()
    if source.suffix == ".cu":
        flags = ["-x", "c++", *flags]
    if source.name == "fibers.cpp":
        flags += [f"-DLOSATOK_SHIM_{sanitizer.upper()}"] if sanitizer else []
    else:
        flags += SANITIZERS[sanitizer]
    # A namespace of its own, for the ops too: they meet no build of losatok_ext in the same process.
    flags += ["-Dlosatok=losatok_shim"]
    if source in BINDINGS:
        flags += ["-O1", "-DLOSATOK_WORKSPACE_BYTES=65536", *_torch_flags()]
    return compile_object(["g++", *flags], source)[0]


def _link(name: str, objects: list[Path], flags: list[str]) -> Path:
    names = " ".join(sorted(o.name for o in objects))
    target = CACHE / f"{name}-{hashlib.sha256((names + ' '.join(flags)).encode()).hexdigest()[:20]}"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            temporary = Path(folder) / target.name
            run(["g++", *map(str, objects), "-o", str(temporary), *flags])
            temporary.replace(target)
    return target


def _objects(sources: list[Path], sanitizer: str) -> list[Path]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda source: shim_object(source, sanitizer), sources))


def shim_ops() -> Path:
    """The bindings and all kernels as a library that registers ``torch.ops.losatok_shim`` for CUDA."""
    objects = _objects([*BINDINGS, *KERNELS, *RUNTIME], "")
    libraries = f"-L{Path(torch.__file__).parent / 'lib'}"
    return _link("shim_ops", objects, ["-shared", "-Wl,-Bsymbolic", libraries, "-lc10", "-ltorch", "-ltorch_cpu"])


def shim_program(*sources: Path, sanitizer: str) -> Path:
    """A program of ``sources`` on the shim, without torch, under a key of SANITIZERS."""
    objects = _objects([*sources, *RUNTIME], sanitizer)
    return _link(
        f"{sources[0].stem}_{sanitizer or 'plain'}", objects, [f for f in SANITIZERS[sanitizer] if "sanitize=" in f]
    )


def cuda_object(source: Path, architecture: int) -> tuple[Path, str]:
    """``source`` compiled by nvcc for one architecture, warnings being errors: what came out (an object for
    WITH_HOST_CODE, else device code alone) and what ptxas said of it.
    """
    compiler = nvcc()
    assert compiler is not None
    kind = "-c" if architecture == WITH_HOST_CODE else "-cubin"
    return compile_object([compiler, *_cuda_flags(architecture)], source, kind)


def _cuda_flags(architecture: int) -> list[str]:
    code = f"arch=compute_{architecture},code=sm_{architecture}"
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{CSRC}", "-gencode", code]
    return [*flags, "-Werror", "all-warnings", "-Xptxas", "-v", "-Xcompiler", "-fPIC,-Wall,-Wextra"]


def cuda_digest(source: Path, architecture: int) -> str:
    """16 hex digits: a hash of all that decides what nvcc makes of ``source``, its version excepted."""
    parts = [" ".join(_cuda_flags(architecture)).replace(str(CSRC), "csrc").encode()]
    for path in sources_of(source):
        parts += [path.name.encode(), path.read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def check_bindings() -> None:
    """Check BINDINGS by g++ against torch's and CUDA's own headers; a warning too raises CompileError.

    In one piece, since torch's headers take nearly all of the time. That each includes what it needs shows where the
    shim compiles them one by one.
    """
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Werror", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", f"-I{CSRC}"]
    command = ["g++", *flags, *_torch_flags(), "-isystem", str(cuda_include())]
    with tempfile.TemporaryDirectory() as folder:
        together = Path(folder) / "all_bindings.cpp"
        together.write_text("".join(f'#include "cuda/{path.name}"\n' for path in BINDINGS))
        marker = CACHE / f"bindings-{_key(command, together)}.checked"
        if not marker.is_file():
            CACHE.mkdir(parents=True, exist_ok=True)
            run([*command, str(together)])
            marker.touch()
