"""Discriminators: networks that learn to tell decoded from recorded audio, for adversarial training of a decoder."""

from losatok_ext.nn.discriminators.base import Discriminator, Scores
from losatok_ext.nn.discriminators.build import DISCRIMINATORS, Discriminators
from losatok_ext.nn.discriminators.multi_frequency import MultiFrequencyDiscriminator
from losatok_ext.nn.discriminators.multi_period import MultiPeriodDiscriminator
from losatok_ext.nn.discriminators.multi_resolution import MultiResolutionDiscriminator
from losatok_ext.nn.discriminators.multi_scale_stft import MultiScaleSTFTDiscriminator

__all__ = [
    "DISCRIMINATORS",
    "Discriminator",
    "Discriminators",
    "MultiFrequencyDiscriminator",
    "MultiPeriodDiscriminator",
    "MultiResolutionDiscriminator",
    "MultiScaleSTFTDiscriminator",
    "Scores",
]
