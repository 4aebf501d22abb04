"""Augmentation of crops: gain, polarity, and another clip mixed in. Random numbers are drawn once per crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from losatok_ext.errors import ConfigError
from losatok_ext.training.config.data_options import AugmentConfig


@dataclass(frozen=True)
class Variation:
    """How one crop is varied."""

    gain_db: float | None
    flip: bool
    snr_db: float | None
    """None: no other clip is mixed in."""
    other: tuple[float, float, float]
    """Within 0..1 each: which clip is mixed in, where its crop lies in it, and where that goes in this crop."""


def draw_variation(config: AugmentConfig, generator: np.random.Generator) -> Variation:
    """Draw how a crop is varied. The same amount of numbers is drawn with any options, so that changing one option does
    not change what the others draw."""
    mix, snr, gain, level, polarity, *other = generator.random(8).tolist()

    def within(bounds: tuple[float, float], place: float) -> float:
        return bounds[0] + place * (bounds[1] - bounds[0])

    return Variation(
        gain_db=within(config.gain_db, level) if gain < config.gain else None,
        flip=polarity < config.polarity,
        snr_db=within(config.mix_snr_db, snr) if mix < config.mix else None,
        other=(other[0], other[1], other[2]),
    )


def vary(audio: Tensor, variation: Variation, other: Tensor | None = None) -> Tensor:
    """Vary a crop.

    Args:
        audio: [N] float32.
        variation: how.
        other: [n] float32 with n at most N, to be mixed in. Its level follows from the mean power of both; where one of
            them is silent, nothing is mixed in.

    Returns:
        A new tensor [N] float32; ``audio`` itself where nothing changes.
    """
    result = audio
    if variation.snr_db is not None and other is not None:
        result = _mix(audio, other, variation.snr_db, variation.other[2])
    if variation.gain_db is not None:
        result = result * 10 ** (variation.gain_db / 20)
    if variation.flip:
        result = -result
    if result is not audio:
        peak = float(result.abs().max())
        result = result / peak if peak > 1 else result
    return result


def _mix(audio: Tensor, other: Tensor, snr_db: float, place: float) -> Tensor:
    ours, theirs = (float(clip.double().square().mean()) for clip in (audio, other))
    if ours == 0 or theirs == 0:
        return audio
    level = (ours / theirs) ** 0.5 * 10 ** (-snr_db / 20)
    start = int(place * (len(audio) - len(other) + 1))
    result = audio.clone()
    result[start : start + len(other)] += level * other.to(torch.float32)
    return result


def check_not_augmented(augment: AugmentConfig, data: object, kind: str) -> None:
    """Raise ConfigError where ``augment`` is on and the data is not audio."""
    if augment.changes_audio:
        raise ConfigError(f"augment varies recordings, and {data} holds {kind}; leave it out, or train on recordings")


def check_features_stay(augment: AugmentConfig, data: object, hears_power: bool) -> None:
    """Raise ConfigError where the stored features of a recording would not fit its audio after ``augment``.

    Args:
        augment: how crops are varied.
        data: for the message.
        hears_power: whether the teacher's input is a power spectrum, which does not depend on polarity.
    """
    named = {"mix": augment.mix, "gain": augment.gain, "polarity": 0.0 if hears_power else augment.polarity}
    changing = [f"augment.{name}" for name, probability in named.items() if probability > 0]
    if changing:
        raise ConfigError(
            f"{' and '.join(changing)} would change what the teacher hears, and {data} holds its features of the "
            "recordings as they are; leave that out, or train on recordings"
        )
