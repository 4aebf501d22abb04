"""Distances between waveforms, and the perceptual measures of other packages."""

from __future__ import annotations

import importlib.util
import math
import warnings

import torch
from torch import Tensor

from losatok_ext.audio.resample import resample
from losatok_ext.errors import UserError

PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}
"""Measure -> the package that computes it; both come with ``losatok-ext[evaluate]``."""

_RATE = 16_000  # of wide-band PESQ
_LIMIT = 100.0  # dB either way: what lies beyond is rounding


def si_sdr(audio: Tensor, reference: Tensor) -> float | None:
    """Scale-invariant signal-to-distortion ratio of ``audio`` [N] to ``reference`` [N] in dB, within -100..100.

    ``10 log10(|a s|^2 / |a s - x|^2)`` with ``a = <x, s> / <s, s>``, both signals less their means. None for a
    reference without signal. Source: Le Roux et al. 2019, "SDR - half-baked or well done?".

    Raises:
        ValueError: the shapes differ or are not [N].
    """
    if audio.dim() != 1 or audio.shape != reference.shape:
        raise ValueError(
            f"audio and reference should be of one shape [N], got {list(audio.shape)} and {list(reference.shape)}"
        )
    x, s = (signal.double() - signal.double().mean() for signal in (audio, reference))
    power = float(s.square().sum())
    if power == 0:
        return None
    target = s * (float((x * s).sum()) / power)
    signal, noise = float(target.square().sum()), float((target - x).square().sum())
    if noise == 0:
        return _LIMIT if signal > 0 else -_LIMIT
    return max(-_LIMIT, min(_LIMIT, 10 * math.log10(signal / noise))) if signal > 0 else -_LIMIT


def missing_package(measure: str) -> str | None:
    """The package that ``measure`` (``"pesq"`` or ``"stoi"``) needs and that is not installed; None where it is."""
    package = PACKAGES[measure]
    return package if importlib.util.find_spec(package) is None else None


def pesq(audio: Tensor, reference: Tensor, sample_rate: int) -> float | None:
    """Wide-band PESQ (ITU-T P.862.2, -0.5 to 4.64) of ``audio`` [N], by the package ``pesq``.

    None where it finds no speech in the reference, or less than a quarter of a second.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import pesq as package
    except ImportError as error:
        raise _missing("pesq", error) from error
    ours, theirs = (resample(signal.float().cpu(), sample_rate, _RATE).numpy() for signal in (audio, reference))
    try:
        return float(package.pesq(_RATE, theirs, ours, "wb"))
    except (package.NoUtterancesError, package.BufferTooShortError):
        return None


def stoi(audio: Tensor, reference: Tensor, sample_rate: int) -> float | None:
    """Short-time objective intelligibility (Taal et al. 2011, 0 to 1) of ``audio`` [N], by the package ``pystoi``.

    None where the reference is silent, or has too little that is not (it needs about 0.4 s).

    Raises:
        UserError: the package is not installed.
    """
    try:
        import pystoi
    except ImportError as error:
        raise _missing("stoi", error) from error
    ours, theirs = (signal.double().cpu().numpy() for signal in (audio, reference))
    if not theirs.any():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(theirs, ours, sample_rate))
        except RuntimeWarning:  # it warns and returns 1e-5
            return None


def _missing(measure: str, error: ImportError) -> UserError:
    return UserError(f"{measure} needs {PACKAGES[measure]} ({error}); pip install 'losatok-ext[evaluate]'")


def wait_for(device: torch.device) -> None:
    """Wait until ``device`` has done what was asked of it, so that a clock tells the time it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
