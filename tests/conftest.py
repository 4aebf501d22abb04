"""Shared set-up: where the data is, threads, and Triton's interpreter where there is no GPU."""

import os
from pathlib import Path

import pytest

# Read when torch loads OpenMP. Threads that wait by spinning take the processor from the other workers of the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated, so before any import of one

HERE = Path(__file__).parent
DATA = HERE / "data"
ONE_THREAD = {"evaluation", "formats", "generation", "jobs", "recordings", "training"}


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch sees none here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(request):
    """One thread, here and in the processes that a test starts, for tests of small models: more threads gain nothing
    there and wait for each other on a busy machine. Ops, modules and models keep what torch chose."""
    if request.path.relative_to(HERE).parts[0] not in ONE_THREAD:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data():
    return DATA


@pytest.fixture(scope="session")
def device():
    """Where kernels run: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
