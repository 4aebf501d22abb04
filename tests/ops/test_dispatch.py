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
    with pytest.raises(BackendUnavailableError, match=r"no native kernels for meta tensors.*use_backend"):
        dispatch.choose("gram_energy", torch.device("meta"))


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


def test_compiled_code_follows_the_choice():
    def which(x):
        return x + dispatch.BACKENDS.index(dispatch.choose("gram_energy", CPU))

    compiled = torch.compile(which, fullgraph=True, backend="eager")
    zero = torch.zeros(())
    assert compiled(zero) == 1
    with use_backend("reference"):
        assert compiled(zero) == 0
    assert compiled(zero) == 1
