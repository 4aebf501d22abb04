"""Shared set-up: where the data is, threads, and Triton's interpreter where there is no GPU."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated, so before any import of one

DATA = Path(__file__).parent / "data"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch sees none here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


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
