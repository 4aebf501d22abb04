"""nvcc takes every CUDA source for sm_80 and sm_90 without a warning, no kernel spills, and the bindings compile."""

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest

from host_shim import build
from host_shim.ops import schemas

ARCHITECTURES = [80, 90]


@pytest.fixture(scope="module")
def compilations():
    """By source and architecture, what will have come of compiling it: two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {key: pool.submit(build.cuda_object, *key) for key in product(build.KERNELS, ARCHITECTURES)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", build.KERNELS, ids=lambda path: path.stem)
def test_kernels_compile_without_spilling(compilations, source, architecture):
    compiled, said = compilations[source, architecture].result()
    assert compiled.stat().st_size > 0
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", said)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert kernels
    assert {arch for _, arch in kernels} == {str(architecture)}
    assert len(spills) >= len(kernels)
    spilling = [name for (name, _), spilled in zip(kernels, spills, strict=False) if spilled != ("0", "0")]
    assert not spilling, f"registers are spilled to memory by {spilling}"


@pytest.mark.parametrize("source", build.BINDINGS, ids=lambda path: path.stem)
def test_bindings_compile_against_torch_and_cuda_headers(source):
    build.check_bindings(source)


def test_kernels_and_launchers_know_no_torch():
    for path in (build.CSRC / "cuda").iterdir():
        if not path.name.startswith("bindings"):
            included = re.findall(r'#include [<"]([^>"]+)', path.read_text())
            assert not [i for i in included if i.split("/")[0] in ("ATen", "torch", "c10")], path.name


def test_inline_assembly_stays_in_one_file():
    sources = [p for p in (build.CSRC / "cuda").iterdir() if re.search(r"\basm\b", p.read_text())]
    assert [p.name for p in sources] == ["async_copy.cuh"]


def test_every_op_is_registered_for_cuda():
    registered = set()
    for path in build.BINDINGS:
        registered |= set(re.findall(r'm\.impl\("(\w+)"', path.read_text()))
    assert registered == {schema.split("(")[0] for schema in schemas()}
