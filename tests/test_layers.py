"""The house rules that a machine can check: imports point down, an op has one name everywhere, files stay readable."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "losatok_ext"
# A module may import from its own layer and from those before it.
LAYERS = [
    {"errors", "files", "_native", "data", "__init__"},
    {"ops", "triton_kernels"},
    {"environment"},
    {"audio"},
    {"nn"},
    {"models"},
    {"training", "inference", "evaluation", "integrations"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_parts(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("losatok_ext"):
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".")[1] for a in node.names if a.name.startswith("losatok_ext.")]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name in LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # the package's own face: imports lazily, by name
    for name, line in imported_parts(path):
        assert LEVEL[name] <= LEVEL[own], f"{path.name}:{line} imports {name}, which lies above {own}"


def schemas():
    text = (ROOT / "csrc" / "registration.cpp").read_text()
    return re.findall(r'"(\w+)_(?:forward|backward)\(', text)


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


def test_every_schema_belongs_to_an_op_of_the_dispatch_table():
    from losatok_ext.ops import dispatch

    names = {"time_relation_loss" if name == "time_relation" else name for name in schemas()}
    assert names == set(dispatch.OPS)


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
