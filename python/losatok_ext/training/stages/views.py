"""What validation sees of the stages that train a LoSATok model, and what their losses count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH, LoSATokConfig
from losatok_ext.training.data.crops import Batch
from losatok_ext.training.stages.base import ClipLatents, Shown

if TYPE_CHECKING:
    from losatok_ext.models import LoSATok
    from losatok_ext.models.tokenizer.latents import DecodedBatch
    from losatok_ext.training.config.train import TrainConfig


def semantic_tokens(batch: Batch, lengths: Tensor, config: LoSATokConfig) -> Tensor:
    """Frames of the semantic encoder, [B] int64, of clips of ``lengths`` samples; of frames these themselves."""
    if batch.audio.dim() == 3:
        return lengths
    return torch.where(lengths > 0, (lengths // config.hop_length + 1) // SEMANTIC_PATCH, 0)


class SemBoView:
    """Mixed into the SemBo stage."""

    model: LoSATok
    config: TrainConfig

    def counts(self, batch: Batch, lengths: Tensor) -> Mapping[str, Tensor]:
        """Reconstruction counts frames, relation pairs of them, within the window where there is one."""
        frames = semantic_tokens(batch, lengths, self.model.config)
        pairs, window = frames.square(), self.config.sembo.window
        if window is not None:
            reach = (frames - 1).clamp(min=0, max=window)
            pairs = frames * (2 * reach + 1) - reach * (reach + 1)
        return {"sembo_reconstruction": frames, "sembo_relation": pairs}

    def latents(self, batch: Batch) -> ClipLatents:
        """What the bottleneck makes of the teacher's features."""
        if batch.audio.dim() == 3:
            features, lengths = batch.audio, batch.lengths
        else:
            features, lengths = self.model.teacher(batch.audio, batch.lengths)
        return ClipLatents(self.model.bottleneck.down(features), None, lengths)

    def show(self, batch: Batch) -> list[Shown]:
        """Nothing: the stage has no decoder yet."""
        return []


class TokenizerView:
    """Mixed into the tokenizer stage."""

    model: LoSATok

    def counts(self, batch: Batch, lengths: Tensor) -> Mapping[str, Tensor]:
        """Tokens; ``mel`` counts the frames of each of its scales, of which this is the mean, in samples: exact for one
        scale, and where all clips are as long."""
        model = self.model
        tokens = torch.tensor([model.config.token_count(n) for n in lengths.tolist()])
        heard = torch.minimum(tokens * model.samples_per_token, lengths)
        hops = [window // 4 for window in model.mel_loss.windows]
        frames = torch.stack([(heard // hop + 1) * hop for hop in hops]).sum(0)
        return {**dict.fromkeys(("semantic_high", "semantic_low", "kl", "quantizer"), tokens), "mel": frames}

    def semantic(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The teacher's features [B, T, D] of a batch and their lengths [B] where they are stored; None: the model
        computes them."""
        if batch.features is None:
            return None
        tokens = semantic_tokens(batch, batch.lengths, self.model.config)
        return batch.features, tokens.to(batch.features.device)

    def _made(self, batch: Batch) -> DecodedBatch:
        """What the model makes of a batch whose features are stored, without its teacher."""
        return self.model(batch.audio, batch.lengths, sample=False, features=self.semantic(batch))

    def latents(self, batch: Batch) -> ClipLatents:
        """The posterior of the latents."""
        stored = batch.features is not None
        latents = self._made(batch).latents if stored else self.model.encode(batch.audio, lengths=batch.lengths)
        return ClipLatents(latents.mu, latents.logvar, latents.lengths)

    def show(self, batch: Batch) -> list[Shown]:
        """Each clip, and its reconstruction; where features are stored to the end of its last token."""
        if batch.features is None:
            made = self.model.reconstruct(batch.audio, lengths=batch.lengths)
        else:
            made = self._made(batch).audio.float()
            made = F.pad(made, (0, batch.audio.shape[1] - made.shape[1]))
        return [
            Shown(name, given[:n], ours[:n], self.model.sample_rate)
            for name, given, ours, n in zip(batch.names, batch.audio, made, batch.lengths.tolist(), strict=True)
        ]
