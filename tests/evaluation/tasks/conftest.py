"""A small model and a few tones, as the measurements take them."""

import pytest
import torch

from losatok_ext.audio.files import write_audio
from losatok_ext.models import LoSATok
from losatok_ext.recordings.labelled import find_items
from small_models import lively, small_config, tone

SAMPLES = (16_000, 9_001, 25_600)


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return lively(LoSATok(small_config()))


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """Three recordings of :data:`SAMPLES` samples at 16 kHz."""
    folder = tmp_path_factory.mktemp("recordings")
    for index, samples in enumerate(SAMPLES):
        write_audio(folder / f"{index}.wav", tone(samples, index), 16_000)
    return find_items([folder])[0]
