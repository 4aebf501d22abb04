"""Mixins of the stages that train a LoSATok model: what validation reports, and what their losses are means over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH, LoSATokConfig
from losatok_ext.training.data.batches import Batch, FeatureBatch, RecordingBatch, recordings_of
from losatok_ext.training.stages.base import ClipLatents, Shown

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok
    from losatok_ext.models.tokenizer.latents import DecodedBatch
    from losatok_ext.training.config.train import TrainConfig


def semantic_tokens(batch: Batch, lengths: Tensor, config: LoSATokConfig) -> Tensor:
    """Tokens of the semantic encoder in clips of ``lengths`` [B] int64: in the unit of ``batch``, which is samples of
    recordings, or tokens already of stored features."""
    if isinstance(batch, FeatureBatch):
        return lengths
    return torch.where(lengths > 0, (lengths // config.hop_length + 1) // SEMANTIC_PATCH, 0)


class SemBoView:
    """Mixed into the SemBo stage."""

    model: LoSATok
    config: TrainConfig

    def counts(self, batch: Batch, lengths: Tensor) -> Mapping[str, Tensor]:
        """Reconstruction is a mean over frames, the relation over pairs of frames: those within the window, if any."""
        frames = semantic_tokens(batch, lengths, self.model.config)
        pairs, window = frames.square(), self.config.sembo.window
        if window is not None:
            reach = (frames - 1).clamp(min=0, max=window)
            pairs = frames * (2 * reach + 1) - reach * (reach + 1)
        return {"sembo_reconstruction": frames, "sembo_relation": pairs}

    def latents(self, batch: Batch) -> ClipLatents:
        """The teacher's features, compressed by the bottleneck."""
        if isinstance(batch, FeatureBatch):
            features, lengths = batch.features, batch.lengths
        else:
            features, lengths = self.model.teacher(recordings_of(batch).audio, batch.lengths)
        return ClipLatents(self.model.bottleneck.down(features), None, lengths)

    def show(self, batch: Batch) -> list[Shown]:
        """Nothing: the decoder is not trained yet."""
        return []


class TokenizerView:
    """Mixed into the tokenizer stage."""

    model: LoSATok

    def counts(self, batch: Batch, lengths: Tensor) -> Mapping[str, Tensor]:
        """Most losses are means over tokens. ``mel`` is one over the frames of each of its scales: here they are added
        up in samples, which is exact for one scale, and for clips of equal length."""
        model = self.model
        tokens = torch.tensor([model.config.token_count(n) for n in lengths.tolist()])
        heard = torch.minimum(tokens * model.samples_per_token, lengths)
        hops = [window // 4 for window in model.mel_loss.windows]
        frames = torch.stack([(heard // hop + 1) * hop for hop in hops]).sum(0)
        return {**dict.fromkeys(("semantic_high", "semantic_low", "kl", "quantizer"), tokens), "mel": frames}

    def semantic(self, batch: RecordingBatch) -> tuple[Tensor, Tensor] | None:
        """The stored features of the teacher: ([B, T, D], lengths [B] in tokens); None where the model computes
        them."""
        if batch.features is None:
            return None
        tokens = semantic_tokens(batch, batch.lengths, self.model.config)
        return batch.features, tokens.to(batch.features.device)

    def _decoded(self, batch: RecordingBatch) -> DecodedBatch:
        """The decoded audio and the latents of a batch whose features are stored: the teacher does not run."""
        return self.model(batch.audio, batch.lengths, sample=False, features=self.semantic(batch))

    def latents(self, batch: Batch) -> ClipLatents:
        """The posterior of the latents."""
        batch = recordings_of(batch)
        stored = batch.features is not None
        latents = self._decoded(batch).latents if stored else self.model.encode(batch.audio, lengths=batch.lengths)
        return ClipLatents(latents.mu, latents.logvar, latents.lengths)

    def show(self, batch: Batch) -> list[Shown]:
        """Each clip and its reconstruction, which ends with the last token where features are stored."""
        batch = recordings_of(batch)
        if batch.features is None:
            made = self.model.reconstruct(batch.audio, lengths=batch.lengths)
        else:
            made = self._decoded(batch).audio.float()
            made = F.pad(made, (0, batch.audio.shape[1] - made.shape[1]))
        return [
            Shown(name, given[:n], ours[:n], self.model.sample_rate)
            for name, given, ours, n in zip(batch.names, batch.audio, made, batch.lengths.tolist(), strict=True)
        ]
