"""Loading, packaging and the facts that the package reports about itself."""

import ast
import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import losatok_ext
from losatok_ext import _native
from losatok_ext.environment import format_info
from losatok_ext.ops import dispatch

ROOT = Path(__file__).parents[1]


def run_python(code, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


def test_native_module_is_loaded_and_reports_its_build():
    assert _native.failure is None
    facts = _native.module.build_info()
    assert facts["version"] == losatok_ext.__version__
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert _native.module.instruction_set() in facts["instruction_sets"].split(",")


def test_instruction_set_can_be_lowered_not_raised():
    result = run_python(
        "from losatok_ext import _native; print(_native.module.instruction_set())", LOSATOK_ISA="default"
    )
    assert result.stdout.strip() == "default", result.stderr


def test_an_unknown_instruction_set_is_refused():
    for code in (
        "import losatok_ext.ops.dispatch",
        "from losatok_ext.cli import main; raise SystemExit(main(['info']))",
    ):
        result = run_python(code + "; from losatok_ext import _native", LOSATOK_ISA="evil")
        assert result.returncode in (1, 2)
        assert "LOSATOK_ISA is 'evil'; it takes default, avx2 or avx512" in result.stderr
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    unset = run_python("from losatok_ext import _native; print(_native.module.instruction_set())", LOSATOK_ISA="")
    assert unset.returncode == 0, unset.stderr


def test_failed_native_import_says_what_when_and_how():
    code = """
import sys
sys.modules["losatok_ext._C"] = None  # what a missing or incompatible library looks like
import torch, losatok_ext
from losatok_ext import ops
x, w, v = torch.randn(3, 4), torch.randn(5, 4), torch.randn(2, 5)
with losatok_ext.use_backend("reference"):
    assert ops.bottleneck_project(x, w, None, v, None).shape == (3, 2)
try:
    ops.bottleneck_project(x, w, None, v, None)
except losatok_ext.BackendUnavailableError as error:
    print(error)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    for words in (
        "Built for: torch",
        f"Found: torch {torch.__version__}",
        "in a checkout of losatok_ext type `pip install --no-build-isolation",
        "reference",
    ):
        assert words in result.stdout
    assert "--no-deps losatok_ext" not in result.stdout  # no package index has it


def test_a_build_for_another_torch_is_not_loaded():
    result = run_python(
        "import torch; torch.__version__ = '2.99.0'; from losatok_ext import _native; print(_native.failure)"
    )
    assert "were built for another torch. Built for: torch" in result.stdout, result.stderr
    assert "Found: torch 2.99.0" in result.stdout


def test_info_explains_once_why_the_native_ops_are_not_loaded():
    code = """
import sys
sys.modules["losatok_ext._C"] = None
from losatok_ext.environment import format_info, info
print(format_info(info()))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("could not be loaded") == 1
    rows = [line.split() for line in result.stdout.splitlines() if line.split()[1:2] == ["cpu"]]
    assert {row[0] for row in rows} == set(dispatch.OPS)
    assert {" ".join(row[2:]) for row in rows} == {"nothing native: not loaded (see above)"}


def test_one_openmp_runtime_in_the_process():
    code = "import losatok_ext._C; print(open('/proc/self/maps').read())"
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc/self/maps on this system")
    lines = run_python("import torch;" + code).stdout.split()
    assert len({word for word in lines if "libgomp" in word or "libiomp" in word}) == 1


def test_info_is_json_and_names_what_runs():
    facts = losatok_ext.info()
    json.dumps(facts)
    for op in dispatch.OPS:
        assert facts["ops"][op]["cpu"]["runs"] == "native"
        assert op in format_info(facts)
    with losatok_ext.use_backend("reference"):
        assert losatok_ext.info()["ops"]["gram_energy"]["cpu"]["runs"] == "reference"


def test_import_is_lazy():
    result = run_python(
        "import sys, losatok_ext; assert 'torch' not in sys.modules; print(losatok_ext.LoSATok.__name__)"
    )
    assert result.stdout.strip() == "LoSATok", result.stderr


def test_type_checkers_are_told_of_every_public_name():
    """What they read in the block for them is what the lazy import gives, by name and by module."""
    tree = ast.parse(Path(losatok_ext.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert set(told) | {"__version__"} == set(losatok_ext.__all__)
    for name, module in told.items():
        assert getattr(losatok_ext, name) is getattr(importlib.import_module(module), name)


def test_mypy_knows_the_types_of_the_public_names(tmp_path):
    pytest.importorskip("mypy")
    code = """
import losatok_ext
from losatok_ext import LoSATok, info
reveal_type(LoSATok.from_pretrained("folder"))
reveal_type(info())
losatok_ext.LoSaTok
"""
    (tmp_path / "user.py").write_text(code.lstrip())
    # Without torch: reading its types takes most of the time and is not the question.
    command = [sys.executable, "-m", "mypy", "--no-site-packages", "--ignore-missing-imports", "user.py"]
    # A link, since mypy takes no folder of site-packages, where an installed package lies.
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "losatok_ext").symlink_to(Path(losatok_ext.__file__).parent, target_is_directory=True)
    environment = {**os.environ, "MYPYPATH": str(tmp_path / "path")}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=570)
    lines = [line for line in result.stdout.splitlines() if line.startswith("user.py:")]
    assert 'Revealed type is "losatok_ext.models.tokenizer.losatok.LoSATok"' in lines[0], result.stdout
    assert 'Revealed type is "dict[str, Any]"' in lines[1].replace("builtins.", "")
    assert 'has no attribute "LoSaTok"' in lines[2]


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'LoSaTok'"):
        losatok_ext.LoSaTok  # noqa: B018


@pytest.mark.slow
def test_wheel_holds_both_trees_and_the_recordings(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, timeout=570)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        "losatok_ext/triton_kernels/bottleneck.py",
        "losatok_ext/ops/bottleneck.py",
        "losatok_ext/data/audio/manifest.jsonl",
        "losatok_ext/_build_facts.txt",
        "losatok_ext/py.typed",
    ):
        assert expected in names
    assert any(name.startswith("losatok_ext/_C.") for name in names)
    assert {name.split("/")[0] for name in names} <= {"losatok_ext", wheel.name.split("-cp")[0] + ".dist-info"}
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".h", ".pyc"))]
