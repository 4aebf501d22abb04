"""The table of ops: what it says each op has is there."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import losatok_ext.ops
from losatok_ext.ops import reference, registry

ROOT = Path(__file__).parents[2]
OPS = list(registry.OPS.values())
RAW = [pytest.param(op, name, id=name) for op in OPS for name in op.schemas]
TRITON = [pytest.param(op, name, id=name) for op in OPS if op.triton for name in op.schemas]


def texts(pattern):
    return {path: path.read_text() for path in sorted(ROOT.glob(pattern))}


def files_with(word, pattern):
    return [path.name for path, text in texts(pattern).items() if re.search(rf"\b{word}\b", text)]


OPCHECKED = [
    re.findall(r'"(\w+)"', arguments)
    for text in texts("tests/ops/test_*.py").values()
    for arguments in re.findall(r"@opchecked\(([^)]*)", text)
]


def test_every_public_op_is_in_the_table():
    assert set(losatok_ext.ops.__all__) == set(registry.OPS)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_an_op_has_a_reference_a_test_and_a_benchmark(op):
    names = [module.name for module in pkgutil.iter_modules(reference.__path__)]
    modules = [importlib.import_module(f"{reference.__name__}.{name}") for name in names]
    assert [module for module in modules if inspect.isfunction(getattr(module, op.name, None))]
    assert files_with(op.name, "tests/ops/test_*.py")
    assert files_with(op.name, "benchmarks/bench_*.py")


@pytest.mark.parametrize(("op", "name"), RAW)
def test_a_raw_op_has_the_kernels_that_the_table_says_and_a_case_for_opcheck(op, name):
    assert name in op.fakes
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"losatok::{name}", "CPU")
    assert bool(files_with(name, "csrc/cuda/bindings_*.cpp")) == op.cuda
    assert hasattr(torch.ops.losatok_triton, name) == (op.triton is not None)
    assert any(name in names for names in OPCHECKED)


@pytest.mark.parametrize(("op", "name"), TRITON)
def test_a_triton_kernel_is_where_the_table_says_and_takes_what_the_schema_says(op, name):
    pytest.importorskip("triton")
    launcher = getattr(importlib.import_module(f"losatok_ext.triton_kernels.{op.triton}"), name)
    schema = getattr(torch.ops.losatok, name).default._schema
    assert list(inspect.signature(launcher).parameters) == [argument.name for argument in schema.arguments]
    assert str(getattr(torch.ops.losatok_triton, name).default._schema) == f"losatok_triton::{op.schemas[name]}"


def fresh_interpreter(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_importing_the_ops_imports_nothing_heavy():
    heavy = ("torch._dynamo", "torch._inductor", "sympy", "triton", "losatok_ext.triton_kernels")
    code = f"import sys, losatok_ext.ops; print([name for name in {heavy} if name in sys.modules])"
    result = fresh_interpreter(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_schema_that_the_compiled_part_does_not_have_says_to_build_again():
    code = (
        "import torch\n"
        "from losatok_ext.ops import registry\n"
        "other = torch.library.Library('losatok', 'FRAGMENT')\n"
        "other.define('taken(Tensor x) -> Tensor')\n"
        "registry.declare('taken', triton=None).raw('taken(Tensor x) -> Tensor')(lambda x: x)\n"
    )
    result = fresh_interpreter(code)
    assert "ImportError: the compiled part of losatok_ext was built from other sources" in result.stderr
    assert "pip install --no-build-isolation ." in result.stderr
