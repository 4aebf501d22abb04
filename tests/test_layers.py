"""The house rules that a machine can check: imports point down, an op has one name everywhere, files stay readable."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "losatok_ext"
# From the ground up. A module imports from its own place and from those before it, never from one behind it.
FLOORS = [
    "errors",
    "text",
    "standard_error",
    "files",
    "configuration",
    "_native",
    "pretrained",
    "masks",
    "ops",
    "environment",
    "audio",
    "nn",
    "formats",
    "models.storage",
    "models.tokenizer",
    "models.teachers",
    "models.generator",
    "models",
    "recordings",
    "generation",
    "jobs",
    "integrations",
    "training.config",
    "training.data",
    "training.stages",
    "training.engine",
    "training.precompute",
    "training.fitting",
    "training",
    "evaluation.metrics",
    "evaluation.reporting",
    "evaluation.tasks",
    "evaluation",
    "cli",
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in MODULES}


def floor(name):
    """The index of the longest entry of FLOORS that ``name`` lies in."""
    fitting = [place for place in FLOORS if name == place or name.startswith(place + ".")]
    assert fitting, f"{name} has no floor: add it to FLOORS"
    return FLOORS.index(max(fitting, key=len))


def imports(path):
    """(module of this package, line) of every import, those within functions and for types only included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "losatok_ext":
            base = node.module.partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                yield inner if inner in FILES else base, node.lineno
        elif isinstance(node, ast.Import):
            yield from (
                (a.name.partition(".")[2], node.lineno) for a in node.names if a.name.startswith("losatok_ext.")
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = name_of(path)
    if not own:
        return  # the package's own face: imports lazily, by name
    for name, line in imports(path):
        if name and name in FILES:
            assert floor(name) <= floor(own), f"{path.name}:{line} imports {name}, which lies above {own}"


def test_no_imports_go_in_a_circle():
    below = {name: {n for n, _ in imports(path) if n in FILES and n not in (name, "")} for name, path in FILES.items()}
    while free := [name for name, needs in below.items() if not needs & below.keys()]:
        for name in free:
            del below[name]
    assert not below, f"in circles or above them: {sorted(below)}"


@pytest.mark.parametrize("family", ["bottleneck", "time_relation"])
def test_an_op_family_has_one_name_in_every_folder(family):
    for path in (
        f"csrc/cpu/{family}.cpp",
        f"csrc/cuda/{family}.cu",
        f"triton_kernels/{family}.py",
        f"python/losatok_ext/ops/{family}.py",
        f"python/losatok_ext/ops/reference/{family}.py",
        f"benchmarks/bench_{family}.py",
    ):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(
    "pattern", ["python/**/*.py", "triton_kernels/*.py", "csrc/**/*.c*", "csrc/**/*.h", "tests/**/*.py"]
)
def test_files_can_be_read_in_one_sitting(pattern):
    long = {str(p.relative_to(ROOT)): n for p in ROOT.glob(pattern) if (n := len(p.read_text().splitlines())) > 600}
    assert not long


def test_nothing_outside_the_repository_is_named():
    for path in [
        *MODULES,
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "Makefile",
    ]:
        assert "../" + "shared" not in path.read_text(), path
