#!/usr/bin/env python3
"""Build the package and run its tests with several versions of torch and Python.

    python tools/matrix.py                                    # each torch on this Python, each Python with torch 2.13
    python tools/matrix.py --torch 2.10 newest --python 3.11  # two combinations
    python tools/matrix.py --plan                             # only say what would be run

The committed state of the checkout is tested, from a clone of its own. Each combination has a folder in WORK with its
virtual environment, build folder and logs. The command may be stopped at any moment; called again it goes on where it
stopped, and runs again what another commit has changed. It writes WORK/matrix.json and WORK/matrix.md. Two runs at the
same time need a WORK each.

Needs: git, a C++ compiler, a package index that pip can reach, and up to 8 GB of disk for each combination (a CUDA
build of torch). CUDA kernels are left out unless --cuda is given. ccache, where it is installed, shortens the builds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from parts import ROOT, Part, Record, run

OLDEST_PYTHON = (3, 10)
TORCHES = ("2.10", "2.13", "newest")
REFERENCE_TORCH = "2.13"
"""The torch that every Python is tested with."""
BUILD_TOOLS = ("scikit-build-core>=0.11", "pybind11>=2.13", "cmake>=3.25.2", "ninja")


@dataclass(frozen=True)
class Combination:
    """A Python and a torch.

    Attributes:
        python: ``3.N``.
        torch: ``2.N`` or ``2.N.P``.
    """

    python: str
    torch: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"py{self.python}-torch{self.torch}"


@dataclass
class Outcome:
    """The result of a combination.

    Attributes:
        python: its exact version, or ``3.N`` where nothing was installed.
        torch: its exact version, or what was asked for where it was not installed.
        commit: what was built and tested.
        build: ``passed``, ``failed``, ``cut`` or ``not run``, or the name of an earlier part that failed.
        tests: ``passed``, ``failed``, ``cut`` or ``not run``.
        selection: the arguments of pytest.
        counts: tests ``passed``, ``failed``, ``errors`` and ``skipped``.
        failures: names of the tests that failed.
        seconds: that the tests took.
    """

    python: str
    torch: str
    commit: str
    build: str
    tests: str
    selection: str
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def version_key(version: str) -> tuple[int, ...]:
    """The numbers of a version, for sorting: ``"3.12"`` comes after ``"3.9"``."""
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0]))


def find_pythons(folders: Iterable[Path]) -> dict[str, Path]:
    """The interpreters ``python3.N`` in ``folders``, by ``3.N``, from 3.10 on; of several the first folder's counts."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("python3.*")):
            match = re.fullmatch(r"python(3\.\d+)", path.name)
            if match and version_key(match[1]) >= OLDEST_PYTHON and os.access(path, os.X_OK):
                found.setdefault(match[1], path)
    return dict(sorted(found.items(), key=lambda item: version_key(item[0])))


def python_folders() -> list[Path]:
    """Where interpreters may be: this one's base, pyenv's versions (newest first), PATH without pyenv's shims."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    versions = sorted(pyenv.glob("3.*"), key=lambda folder: version_key(folder.name), reverse=True)
    paths = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    outside = [path for path in paths if path.name != "shims" and not (path.parent / "pyvenv.cfg").exists()]
    return [Path(sys.base_prefix) / "bin", *(folder / "bin" for folder in versions), *outside]


def plan(pythons: Sequence[str], torches: Sequence[str], main: str, every: bool = False) -> list[Combination]:
    """The combinations to run.

    Args:
        pythons: versions ``3.N``.
        torches: versions of torch, no two the same.
        main: the Python on which each torch is tested; the first of ``pythons`` where it is not one of them.
        every: each Python with each torch, instead of each torch on ``main`` and each Python with one torch.

    Returns:
        Combinations, those of ``main`` first. Other Pythons get :data:`REFERENCE_TORCH` where it is one of
        ``torches``, else the first of them.
    """
    main = main if main in pythons else pythons[0]
    others = [python for python in pythons if python != main]
    reference = next((torch for torch in torches if _is(torch, REFERENCE_TORCH)), torches[0])
    first = [Combination(main, torch) for torch in torches]
    return first + [Combination(python, torch) for python in others for torch in (torches if every else [reference])]


def _is(version: str, wanted: str) -> bool:
    """Whether ``version`` is ``wanted`` or a patch release of it."""
    numbers = version_key(wanted)
    return version_key(version)[: len(numbers)] == numbers


def resolve(torches: Sequence[str], newest: str | None) -> list[str]:
    """``torches`` with ``"newest"`` replaced by the version ``newest``, each release once.

    Raises:
        SystemExit: an entry is neither ``newest`` nor a version such as 2.10 or 2.13.0.
    """
    found: list[str] = []
    for torch in torches:
        if torch != "newest" and not re.fullmatch(r"\d+\.\d+(\.\d+)?", torch):
            raise SystemExit(f"--torch takes versions such as 2.10 or 2.13.0, or newest; not {torch!r}")
        version = newest if torch == "newest" and newest else torch
        if not any(_is(version, other) or _is(other, version) for other in found):
            found.append(version)
    return found


def newest_torch(python: Path) -> str:
    """The newest torch that pip would install for ``python``.

    Raises:
        SystemExit: pip finds none.
    """
    command = [str(python), "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--no-deps"]
    result = subprocess.run([*command, "--report", "-", "torch"], capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"pip finds no torch for {python}: {result.stderr.strip()}")
    return json.loads(result.stdout)["install"][0]["metadata"]["version"].split("+")[0]


def parts(
    combination: Combination, interpreter: Path, folder: Path, commit: str, tests: Sequence[str], jobs: int
) -> list[Part]:
    """What is run for a combination, in order; ``folder`` is its own."""
    python = str(folder / "venv" / "bin" / "python")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q")
    build = (python, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-build-isolation", "--no-deps")
    torch = f"torch=={combination.torch}" + (".*" if combination.torch.count(".") == 1 else "")
    # pip must not replace torch on behalf of another package.
    constraint = str(folder / "torch.txt")
    wheels = shlex.quote(str(folder / "wheel"))
    needed = shlex.join((*pip, "-c", constraint))
    package = shlex.join((*pip, "--force-reinstall", "--no-deps"))
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(jobs))
    return [
        Part("venv", (str(interpreter), "-m", "venv", str(folder / "venv"))),
        Part("torch", (*pip, torch), ("venv",)),
        Part("tools", (*pip, *BUILD_TOOLS), ("torch",)),
        Part(
            "build",
            (*build, "-C", f"build-dir={folder / 'build'}", "-w", str(folder / "wheel"), "."),
            ("tools",),
            commit,
        ),
        # First what the package needs, then the package even if one of the same version is there.
        Part(
            "install",
            ("sh", "-ec", f'wheel=$(ls {wheels}/*.whl); {needed} "$wheel[dev]"; {package} "$wheel"'),
            ("build",),
            commit,
        ),
        # Optional, as in the Makefile: the tests that need these are skipped where they cannot be installed.
        Part("extras", (*pip, "-c", constraint, "pesq>=0.0.4", "pystoi>=0.4"), ("install",)),
        Part("xares", (*pip, "--no-deps", "xares>=0.1.3"), ("install",)),
        Part(
            "tests",
            (*pytest, f"--junitxml={folder / 'tests.xml'}", *tests),
            ("install",),
            f"{commit} {shlex.join(tests)}",
        ),
    ]


def counts(report: Path) -> tuple[dict[str, int], list[str]]:
    """Of a JUnit report of pytest: how many tests passed, failed, had errors and were skipped; names of the failed."""
    found = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    failures = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        for tag, name in (("error", "errors"), ("failure", "failed"), ("skipped", "skipped")):
            if tag in kinds:
                found[name] += 1
                break
        else:
            found["passed"] += 1
        if kinds & {"error", "failure"}:
            failures.append(f"{case.get('classname', '')}::{case.get('name', '')}")
    return found, failures


def outcome(combination: Combination, folder: Path, tests: Sequence[str], commit: str) -> Outcome:
    """What the record in ``folder`` says of a combination; parts of another commit or selection count as not run."""
    record = Record(folder)
    state = {
        name: entry for name, entry in record.state.items() if entry.get("version", "").split(" ")[0] in ("", commit)
    }
    first = ("venv", "torch", "tools", "build", "install")
    outcomes = {name: state[name]["outcome"] for name in first if name in state}
    broken = next((name for name in first if name != "build" and outcomes.get(name) == "failed"), None)
    build = f"{broken} failed" if broken else outcomes.get("build", "not run")
    tested = state.get("tests", {})
    if tested.get("version") != f"{commit} {shlex.join(tests)}" or build != "passed":
        tested = {}
    result = Outcome(
        *(_installed(folder / "venv") or (combination.python, combination.torch)),
        commit,
        build,
        tested.get("outcome", "not run"),
        shlex.join(tests) or "all",
        seconds=tested.get("seconds", 0.0),
    )
    if result.tests in ("passed", "failed") and (folder / "tests.xml").exists():
        result.counts, result.failures = counts(folder / "tests.xml")
    return result


def _installed(venv: Path) -> tuple[str, str] | None:
    """The exact versions of Python and torch in a virtual environment; None where one of them is not there."""
    settings = venv / "pyvenv.cfg"
    python = re.search(r"^version = (\S+)", settings.read_text(), re.MULTILINE) if settings.exists() else None
    torch = next(iter(distributions(name="torch", path=[str(path) for path in venv.glob("lib/*/site-packages")])), None)
    return (python[1], torch.version) if python and torch else None


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A table of ``outcomes``, and below it the tests that failed."""
    lines = ["| Python | torch | build | tests | passed | failed | skipped | minutes |", "| --- " * 8 + "|"]
    for each in outcomes:
        failed = each.counts.get("failed", 0) + each.counts.get("errors", 0)
        numbers = [each.counts.get("passed", 0), failed, each.counts.get("skipped", 0)] if each.counts else [""] * 3
        minutes = f"{each.seconds / 60:.1f}" if each.seconds else ""
        cells = [each.python, each.torch, each.build, each.tests, *numbers, minutes]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", *sorted({f"Commit {each.commit[:12]}, pytest {each.selection}." for each in outcomes})]
    for each in outcomes:
        lines += [f"- Python {each.python}, torch {each.torch}: {name} failed" for name in each.failures]
    return "\n".join(lines) + "\n"


def checkout(folder: Path) -> str:
    """Bring ``folder`` to the commit of this checkout, as a clone, and return that commit."""
    commit = _git(ROOT, "rev-parse", "HEAD")
    if _git(ROOT, "status", "--porcelain"):
        print(f"uncommitted changes are not part of what is tested; that is commit {commit[:12]}")
    if not (folder / ".git").exists():
        _git(ROOT, "clone", "-q", "--no-checkout", str(ROOT), str(folder))
    _git(folder, "fetch", "-q", str(ROOT), commit)
    _git(folder, "checkout", "-q", "--force", "--detach", commit)
    return commit


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def build_environment(source: Path, cuda: bool) -> dict[str, str]:
    """Variables for the commands: whether CUDA kernels are built; ccache shared between combinations."""
    variables = {"LOSATOK_CUDA": "auto" if cuda else "0", "PYTHONNOUSERSITE": "1"}
    if shutil.which("ccache"):
        variables |= {"CCACHE_BASEDIR": str(source.parent), "CCACHE_NOHASHDIR": "1"}
    return variables


def main() -> int:
    """Run the combinations; 0 when every build and every test has passed, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", nargs="+", default=TORCHES, metavar="VERSION", help="2.N, 2.N.P or newest")
    parser.add_argument("--python", nargs="+", metavar="VERSION", help="3.N; by default all that are found")
    parser.add_argument("--every", action="store_true", help="each Python with each torch")
    parser.add_argument("--tests", default="", metavar="ARGS", help='arguments of pytest, such as "tests/ops -x"')
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="pytest workers; 0 for none")
    parser.add_argument("--cuda", action="store_true", help="build the CUDA kernels where torch and nvcc fit")
    parser.add_argument("-w", "--work", type=Path, default=ROOT / "build" / "matrix", help="folder for environments")
    parser.add_argument("--limit", type=float, default=24 * 3600, help="seconds for each combination in this call")
    parser.add_argument("--again", nargs="*", default=[], metavar="PART", help="parts to repeat: build, tests, ...")
    parser.add_argument("--plan", action="store_true", help="print the combinations and stop")
    options = parser.parse_args()
    found = find_pythons(python_folders())
    pythons = options.python or list(found)
    if missing := [python for python in pythons if python not in found]:
        raise SystemExit(f"--python: no python{missing[0]} was found; there are {', '.join(found) or 'none'}")
    main_python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if main_python not in pythons:
        main_python = pythons[0]
    newest = newest_torch(found[main_python]) if "newest" in options.torch else None
    combinations = plan(pythons, resolve(options.torch, newest), main_python, options.every)
    tests = shlex.split(options.tests)
    if options.plan:
        print("\n".join(f"Python {each.python}, torch {each.torch}" for each in combinations))
        return 0
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    source = work / "source"
    commit = checkout(source)
    environment = build_environment(source, options.cuda)
    outcomes: list[Outcome] = []
    for combination in combinations:
        folder = work / combination.name
        folder.mkdir(exist_ok=True)
        torch = combination.torch + (".*" if combination.torch.count(".") == 1 else "")
        (folder / "torch.txt").write_text(f"torch=={torch}\n")
        print(f"Python {combination.python}, torch {combination.torch}", flush=True)
        todo = parts(combination, found[combination.python], folder, commit, tests, options.jobs)
        record = Record(folder)
        # A download may fail by chance; a build or a test of the same commit fails again.
        downloads = [part.name for part in todo if part.name not in ("build", "tests")]
        again = [*options.again, *(name for name in downloads if record.outcome(name) == "failed")]
        run(todo, record, options.limit, again, source, environment)
        outcomes = [outcome(each, work / each.name, tests, commit) for each in combinations]
        (work / "matrix.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
        (work / "matrix.md").write_text(markdown(outcomes))
    print(markdown(outcomes))
    return 0 if all(each.build == each.tests == "passed" for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
