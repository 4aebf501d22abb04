"""Distances between waveforms, and perceptual measures that other packages compute."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import warnings

from torch import Tensor

from losatok_ext.audio.resample import resample
from losatok_ext.errors import UserError

PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}
"""Measure -> the package that computes it; both come with the extra ``evaluate``."""

_RATE = 16_000  # of wide-band PESQ
_LIMIT = 100.0  # dB, both ways: values beyond it are only rounding errors


def si_sdr(audio: Tensor, reference: Tensor) -> float | None:
    """Scale-invariant signal-to-distortion ratio of ``audio`` [N] to ``reference`` [N] in dB, within -100..100.

    ``10 log10(|a s|^2 / |a s - x|^2)`` with ``a = <x, s> / <s, s>``, both signals minus their means. None for a
    silent reference. Source: Le Roux et al. 2019, "SDR - half-baked or well done?".

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

    Recordings of more than 20 s are cut into equal parts of at most 10 s, and the mean of their values is taken: the
    measure is made for about that length, and its code can hold only a limited number of utterances. None where the
    reference has no speech, or less than a quarter of a second of it.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import pesq as package
    except ImportError as error:
        raise _missing("pesq", error) from error
    ours, theirs = (resample(signal.float().cpu(), sample_rate, _RATE) for signal in (audio, reference))
    values = []
    for part, target in zip(_parts(ours, _RATE), _parts(theirs, _RATE), strict=True):
        with contextlib.suppress(package.NoUtterancesError, package.BufferTooShortError):
            values.append(float(package.pesq(_RATE, target.numpy(), part.numpy(), "wb")))
    return sum(values) / len(values) if values else None


def stoi(audio: Tensor, reference: Tensor, sample_rate: int) -> float | None:
    """Short-time objective intelligibility (Taal et al. 2011, 0 to 1) of ``audio`` [N], by the package ``pystoi``.

    Recordings of more than 20 s are cut into equal parts of at most 10 s. None where the reference is silent, or less
    than about 0.4 s of it is not.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import pystoi
    except ImportError as error:
        raise _missing("stoi", error) from error
    ours, theirs = (_parts(signal.double().cpu(), sample_rate) for signal in (audio, reference))
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for part, target in zip(ours, theirs, strict=True):
            if target.any():
                with contextlib.suppress(RuntimeWarning):  # for too little signal it warns and returns 1e-5
                    values.append(float(pystoi.stoi(target.numpy(), part.numpy(), sample_rate)))
    return sum(values) / len(values) if values else None


def _parts(audio: Tensor, sample_rate: int) -> tuple[Tensor, ...]:
    """``audio`` [N], beyond 20 s cut into parts of at most 10 s whose lengths differ by at most one sample."""
    longest = 10 * sample_rate
    return (audio,) if len(audio) <= 2 * longest else audio.tensor_split(-(-len(audio) // longest))


def _missing(measure: str, error: ImportError) -> UserError:
    return UserError(f"{measure} needs {PACKAGES[measure]} ({error}); pip install {PACKAGES[measure]}")
