"""What the tests of jobs share."""

import pytest
import torch

from losatok_ext.models import LoSATok
from small_models import lively, small_config


@pytest.fixture(scope="session")
def model():
    """A small model. Nothing in it is to be changed."""
    torch.manual_seed(0)
    return lively(LoSATok(small_config()))
