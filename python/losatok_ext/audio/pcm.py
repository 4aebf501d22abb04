"""Audio as 16-bit integers, as files hold it."""

from __future__ import annotations

import torch
from torch import Tensor

PCM_16 = "PCM_16"
"""libsndfile's name of the encoding."""


def sixteen_bits(audio: Tensor) -> Tensor:
    """Floating-point ``audio`` of any shape as int16: the nearest of the multiples of 2**-15 from -1 to 1 - 2**-15.

    What lies beyond is clipped. Samples that were read from 16 bits, which divides by 32768, come back as they were;
    libsndfile would multiply by 32767.
    """
    return (audio * 32768).round().clamp(-32768, 32767).to(torch.int16)
