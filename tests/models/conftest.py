"""The models that several tests share."""

import pytest

from losatok_ext.models import LoSATok
from small_models import lively, small_config


@pytest.fixture(scope="session")
def model():
    return lively(LoSATok(small_config()))


@pytest.fixture(scope="session")
def model50():
    return lively(LoSATok(small_config(frame_rate=50, istft_n_fft=640, istft_hop=160)))


@pytest.fixture(scope="session")
def chunked():
    """Chunks of 8 tokens in groups of 3, so that a second of audio has many."""
    return lively(LoSATok(small_config(chunk_frames=32, chunk_batch=3)))
