"""nvcc takes every CUDA source for sm_80 and sm_90 without a warning, no kernel spills, and the bindings compile."""

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest

import kernel_evidence as evidence
from host_shim import build
from host_shim.ops import schemas


def is_kept(source, architecture):
    """Whether docs/kernels.json holds what nvcc makes of exactly these sources."""
    digest = build.cuda_digest(source, architecture)
    return evidence.unchanged("nvcc", f"sm_{architecture}", source.stem, digest)


@pytest.fixture(scope="module")
def compilations():
    """By source and architecture that are not kept as they are, what will have come of compiling it: two at a time."""
    with ThreadPoolExecutor(2) as pool:
        work = [key for key in product(build.KERNELS, evidence.ARCHITECTURES) if not is_kept(*key)]
        yield {key: pool.submit(evidence.cuda_rows, *key) for key in work}


@pytest.mark.parametrize("architecture", evidence.ARCHITECTURES)
@pytest.mark.parametrize("source", build.KERNELS, ids=lambda path: path.stem)
def test_kernels_compile_without_spilling_as_is_kept(compilations, source, architecture):
    compiled = compilations.get((source, architecture))
    rows = None if compiled is None else compiled.result()
    try:
        kept = evidence.kept_rows("nvcc", f"sm_{architecture}")
    except evidence.OtherCompilerError as other:
        assert not [name for name, row in rows.items() if row["spilled"]], "registers are spilled to memory"
        pytest.skip(str(other))
    own = {name: row for name, row in kept.items() if name.startswith(f"{source.stem}: ")}
    rows = own if rows is None else rows
    assert rows
    assert not [name for name, row in rows.items() if row["spilled"]], "registers are spilled to memory"
    changed = evidence.differences(rows, own)
    assert not changed, "\n".join([*changed, "docs/kernels.json has other figures; meant? make evidence"])


def test_bindings_compile_against_torch_and_cuda_headers():
    build.check_bindings()


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
