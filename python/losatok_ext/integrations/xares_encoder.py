"""LoSATok as an encoder of XARES, the eXtensive Audio Representation and Evaluation Suite (package ``xares``).

XARES takes the path of this file, and constructs the one class in it without arguments::

    LOSATOK_MODEL=demo/model python -m xares.run losatok_ext/integrations/xares_encoder.py src/tasks/esc50_task.py

``LOSATOK_MODEL`` names the model: its folder, the folder of its run, or the name of a bundled model.
``LOSATOK_FEATURES`` names what is evaluated: ``latents`` (the default), ``semantic``, ``semantic_low``, ``acoustic``,
``acoustic_low``, ``unified`` or ``unified_low``. XARES requires that exactly one name in the file ends in Encoder.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext.errors import UserError
from losatok_ext.models import LoSATok

__all__ = ["LoSATokEncoder"]

_LATENTS = "latents"
_WIDE = ("semantic", "acoustic", "unified")
_NARROW = tuple(f"{name}_low" for name in _WIDE)


class LoSATokEncoder(nn.Module):
    """Audio at 16 kHz to frames of features.

    Args:
        model: as for ``LoSATok.from_pretrained``; None: the value of the environment variable ``LOSATOK_MODEL``.
        features: which features to return; None: the value of ``LOSATOK_FEATURES``, or ``latents``.

    Attributes:
        output_dim: width of a frame.
        sampling_rate: Hz of the audio.
        hop_size_in_ms: milliseconds between frames.

    Raises:
        UserError: no model is named, or there are no such features.
        CheckpointError: the folder holds no usable model.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, features: str | None = None) -> None:
        super().__init__()
        folder = os.environ.get("LOSATOK_MODEL") if model is None else model
        if not folder:
            raise UserError("no model: set LOSATOK_MODEL to the folder of one")
        chosen = features or os.environ.get("LOSATOK_FEATURES") or _LATENTS
        if chosen not in (_LATENTS, *_WIDE, *_NARROW):
            known = ", ".join((_LATENTS, *_WIDE, *_NARROW))
            raise UserError(f"the features are {chosen!r}; LOSATOK_FEATURES takes {known}")
        self.features = chosen
        self.model = LoSATok.from_pretrained(folder)
        config = self.model.config
        self.output_dim = config.embed_dim if chosen in _WIDE else config.latent_dim
        self.sampling_rate = self.model.sample_rate
        self.hop_size_in_ms = 1000 / self.model.frame_rate
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LoSATokEncoder:
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Features of a batch.

        Args:
            audio: [B, N] or [N] at ``sampling_rate``. Zeros are added to audio shorter than one token.

        Returns:
            [B, T, output_dim] float32 on the model's device.
        """
        clips = audio if audio.dim() == 2 else audio[None]
        clips = F.pad(clips.float(), (0, max(self.model.samples_per_token - clips.shape[1], 0)))
        latents = self.model.encode(clips, self.sampling_rate, features=self.features != _LATENTS)
        return getattr(latents, "mu" if self.features == _LATENTS else self.features).float()
