"""Sample rate conversion by soxr (libsoxr's band-limited polyphase filter, quality HQ: 20 bits)."""

from __future__ import annotations

from numbers import Integral
from types import ModuleType

import torch
from torch import Tensor

from losatok_ext.errors import UserError

RATES = (1_000, 1_000_000)
"""The lowest and the highest sample rate in Hz. Others are mistakes, for which the filters would not end."""


def check_rate(name: str, rate: int) -> None:
    """Raise ValueError, with the ``name`` of the argument, unless ``rate`` is a whole number within :data:`RATES`."""
    if not isinstance(rate, Integral) or isinstance(rate, bool) or not RATES[0] <= int(rate) <= RATES[1]:
        raise ValueError(f"{name} should be a whole number of Hz from {RATES[0]} to {RATES[1]}, got {rate!r}")


def import_soxr() -> ModuleType:
    """The module ``soxr``.

    Raises:
        UserError: it is not installed; the message names the cure.
    """
    try:
        import soxr
    except ImportError as error:
        raise UserError(f"resampling needs soxr ({error}); pip install 'losatok-ext[audio]'") from error
    return soxr


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Convert ``audio`` [..., N] (floating point) from ``from_rate`` to ``to_rate`` (Hz): [..., round(N to_rate /
    from_rate)].

    Computed in float32 (float64 for float64) on the CPU, and returned in the dtype and on the device of ``audio``. Not
    differentiable.

    Raises:
        TypeError: ``audio`` is not a floating-point tensor.
        ValueError: a rate is not a whole number within :data:`RATES`, or ``audio`` has no dimension.
        UserError: soxr is not installed.
    """
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        kind = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
        raise TypeError(f"audio should be a floating-point torch.Tensor, got {kind}")
    if audio.dim() == 0:
        raise ValueError("audio should have shape [..., N], got a scalar")
    for name, rate in (("from_rate", from_rate), ("to_rate", to_rate)):
        check_rate(name, rate)
    if from_rate == to_rate:
        return audio
    samples = audio.shape[-1]
    if samples == 0 or audio.numel() == 0:
        return audio.new_empty(*audio.shape[:-1], round(samples * to_rate / from_rate))
    dtype = torch.float64 if audio.dtype == torch.float64 else torch.float32
    channels_last = audio.detach().reshape(-1, samples).t().to("cpu", dtype).contiguous().numpy()
    result = torch.from_numpy(import_soxr().resample(channels_last, from_rate, to_rate, quality="HQ"))
    return result.t().reshape(*audio.shape[:-1], -1).to(audio.device, audio.dtype)
