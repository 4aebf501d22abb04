"""Choosing an implementation: by context, by environment, and what is said when a choice cannot be met."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest
import torch

from losatok_ext import BackendUnavailableError, use_backend
from losatok_ext.ops import dispatch

CPU = torch.device("cpu")


def test_default_on_the_cpu_is_native():
    assert dispatch.requested_backend() is None
    assert dispatch.choose("gram_energy", CPU) == "native"


def test_choices_nest_and_are_restored_after_an_error():
    with use_backend("reference"):
        with pytest.raises(RuntimeError, match="inner"), use_backend("native"):
            assert dispatch.choose("gram_energy", CPU) == "native"
            raise RuntimeError("inner")
        assert dispatch.choose("gram_energy", CPU) == "reference"
    assert dispatch.requested_backend() is None


def test_a_choice_is_local_to_its_thread_and_task():
    seen = {}

    def other_thread():
        seen["thread"] = dispatch.requested_backend()

    async def chooser():
        with use_backend("reference"):
            await asyncio.sleep(0.01)
            return dispatch.requested_backend()

    async def bystander():
        await asyncio.sleep(0.005)
        return dispatch.requested_backend()

    async def both():
        return await asyncio.gather(chooser(), bystander())

    with use_backend("reference"):
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert seen == {"thread": None}
    assert asyncio.run(both()) == ["reference", None]


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="'fast'; it takes one of 'reference', 'native', 'triton'"):
        use_backend("fast")


def test_a_device_without_kernels_raises_with_the_cure():
    with pytest.raises(BackendUnavailableError, match=r"no native kernels for xpu tensors.*use_backend"):
        dispatch.choose("gram_energy", torch.device("xpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this build may have CUDA kernels")
def test_cuda_without_cuda_kernels_names_the_rebuild():
    with use_backend("native"), pytest.raises(BackendUnavailableError, match="LOSATOK_CUDA=1"):
        dispatch.choose("gram_energy", torch.device("cuda"))


@pytest.mark.parametrize(
    ("value", "expected"), [("reference", "reference"), ("quick", "LOSATOK_BACKEND is 'quick'; it takes one of")]
)
def test_environment_variable(value, expected):
    code = (
        "import torch; from losatok_ext.ops import dispatch; print(dispatch.choose('gram_energy', torch.device('cpu')))"
    )
    environment = {**os.environ, "LOSATOK_BACKEND": value}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert expected in result.stdout + result.stderr


def which(x):
    """``x`` plus 0 where the reference runs, 1 for native, 2 for triton."""
    return x + dispatch.BACKENDS.index(dispatch.choose("gram_energy", CPU))


def which_within_reference(x):
    """The sum of :func:`which` before, within (times 10) and after (times 100) a block of the reference."""
    before = which(x)
    with use_backend("reference"):
        within = which(x)
    return before + 10 * within + 100 * which(x)


@pytest.fixture
def compiled():
    """:func:`torch.compile` that counts its compilations in ``compiled.graphs``."""
    torch._dynamo.reset()

    def compile(function):
        def backend(graph, inputs):
            compile.graphs += 1
            return graph.forward

        return torch.compile(function, fullgraph=True, backend=backend)

    compile.graphs = 0
    return compile


ZERO = torch.zeros(())


def in_a_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(float(function(ZERO))))
    thread.start()
    thread.join()
    return results[0]


def test_compiled_code_follows_the_choice(compiled):
    function = compiled(which)
    assert function(ZERO) == 1
    with use_backend("reference"):
        assert function(ZERO) == 0
    assert function(ZERO) == 1
    assert compiled.graphs == 2


def test_compiled_code_follows_the_choice_of_the_thread_that_calls_it(compiled):
    function = compiled(which)
    with use_backend("reference"):
        assert function(ZERO) == 0  # compiled under the choice
        assert in_a_thread(function) == 1  # compiled in another thread meanwhile, without it
        assert in_a_thread(compiled(which_within_reference)) == 101
        assert function(ZERO) == 0
        assert compiled(which_within_reference)(ZERO) == 0
    assert function(ZERO) == 1


def test_compiled_code_follows_the_choice_of_the_task_that_calls_it(compiled):
    function = compiled(which)

    async def chooser():
        with use_backend("reference"):
            await asyncio.sleep(0)
            return float(function(ZERO))

    async def bystander():
        await asyncio.sleep(0)
        return float(function(ZERO))

    async def both():
        return await asyncio.gather(chooser(), bystander(), bystander())

    assert asyncio.run(both()) == [0, 1, 1]
    assert compiled.graphs == 2


def test_a_choice_inside_compiled_code_ends_there(compiled):
    function = compiled(which_within_reference)
    assert function(ZERO) == which_within_reference(ZERO) == 101
    assert dispatch.requested_backend() is None
    assert compiled(which)(ZERO) == 1
