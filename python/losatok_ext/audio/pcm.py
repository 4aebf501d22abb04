"""Audio as 16-bit integers, the way files store it."""

from __future__ import annotations

import torch
from torch import Tensor

PCM_16 = "PCM_16"
"""The name of the encoding in libsndfile."""


def sixteen_bits(audio: Tensor) -> Tensor:
    """Floating-point ``audio`` of any shape as int16: rounded to multiples of 2**-15 and clipped to -1..1 - 2**-15.

    Samples that were read from 16 bits, which divides by 32768, are restored exactly; libsndfile itself would multiply
    by 32767.
    """
    return (audio * 32768).round().clamp(-32768, 32767).to(torch.int16)
