"""One thread for small models."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """These models are too small to share out; waiting threads would only take time from the other test worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
