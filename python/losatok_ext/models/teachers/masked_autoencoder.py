"""The masked autoencoder by which a semantic teacher is trained: it predicts mel patches that are hidden from it.

Sources: He et al. 2022 (arXiv 2111.06377) for the method; Dinkel et al. 2024 (arXiv 2406.06992, Dasheng) for patches
that span all mel bins and four frames of sound.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from losatok_ext.masks import valid_mask
from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH
from losatok_ext.models.tokenizer.dasheng import SemanticEncoder
from losatok_ext.models.tokenizer.losatok import LoSATok
from losatok_ext.nn.attention import TransformerBlock
from losatok_ext.nn.noise import uniform


class MaskedAutoencoder(nn.Module):
    """The semantic encoder of a LoSATok model, and a small decoder that is needed for its training only.

    The encoder processes a part of each clip's patches; the decoder gets its output with the positions, and predicts
    the other patches. The encoder does not process the hidden patches, so that training is cheap.

    Args:
        tokenizer: its semantic encoder is trained, and no other part of it.
        decoder_dim: width of the decoder.
        decoder_depth: its transformer blocks.
    """

    def __init__(self, tokenizer: LoSATok, decoder_dim: int, decoder_depth: int) -> None:
        super().__init__()
        config = tokenizer.config
        patch = config.semantic_mels * SEMANTIC_PATCH
        heads = next(n for n in range(max(decoder_dim // 64, 1), 0, -1) if decoder_dim % n == 0)
        self.tokenizer = tokenizer
        self.decoder_embed = nn.Linear(config.embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(decoder_dim))
        self.decoder_position = nn.Parameter(torch.empty(self.encoder.chunk_tokens, decoder_dim))
        self.decoder_blocks = nn.ModuleList(
            TransformerBlock(decoder_dim, heads, decoder_dim * config.mlp_ratio) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_head = nn.Linear(decoder_dim, patch)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.decoder_position, std=0.02)
        tokenizer.requires_grad_(False)
        encoder = self.encoder
        for part in (encoder.patch_embed, encoder.blocks, encoder.norm):
            part.requires_grad_(True)
        encoder.time_position.requires_grad_(True)
        encoder.frequency_position.requires_grad_(True)

    @property
    def encoder(self) -> SemanticEncoder:
        """The semantic encoder. Unlike elsewhere, it takes gradients."""
        encoder = self.tokenizer.semantic_encoder
        assert isinstance(encoder, SemanticEncoder)
        return encoder

    def forward(
        self,
        audio: Tensor,
        lengths: Tensor,
        mask_ratio: float = 0.75,
        normalise: bool = False,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch: ``masked``, the mean squared error over the values of the hidden patches.

        Args:
            audio: [B, N] at the model's sample rate, at most ``chunk_frames`` mel frames of it.
            lengths: [B] int64 samples. If they are on the CPU, a GPU is not waited for.
            mask_ratio: share of each clip's patches that is hidden, rounded down; at least one stays visible.
            normalise: compare patches that are normalized by their own mean and deviation (He et al., section 3).
            generator: of the random choice of patches, on the CPU.

        Raises:
            ValueError: clips are longer than one chunk of the encoder.
        """
        encoder = self.encoder
        patches, tokens = encoder.patches(audio, lengths)
        batch, time = patches.shape[:2]
        if time > encoder.chunk_tokens:
            raise ValueError(
                f"audio has {time} tokens and the encoder sees {encoder.chunk_tokens} at once; cut shorter crops"
            )
        # Counted on the device of the lengths: if that is the CPU, a GPU is not waited for.
        counts = encoder.token_counts(lengths)
        counts = (counts - (counts * mask_ratio).long()).clamp(min=1)
        kept = counts.to(audio.device)
        target = encoder.normalise(patches)

        # A random order of the tokens, with those past the clip's end last; the first ones are visible.
        drawn = uniform((batch, time), generator=generator).to(audio.device)
        inside = valid_mask(tokens, time)
        order = torch.where(inside, drawn, 2.0).argsort(dim=1)
        place = order.argsort(dim=1)
        shown = order[:, : int(counts.max())]
        x = encoder.embed(target)
        x = x.gather(1, shown[:, :, None].expand(-1, -1, x.shape[-1]))
        x = self.decoder_embed(encoder.transform(x, kept))

        visible = place < kept[:, None]
        back = place.clamp(max=shown.shape[1] - 1)[:, :, None].expand(-1, -1, x.shape[-1])
        x = torch.where(visible[:, :, None], x.gather(1, back), self.mask_token.to(x.dtype))
        x = (x + self.decoder_position[:time]).to(x.dtype)
        for block in self.decoder_blocks:
            x = block(x, tokens)
        restored = self.decoder_head(self.decoder_norm(x)).float()
        if normalise:
            deviation = target.var(-1, unbiased=False, keepdim=True).add(1e-6).sqrt()
            target = (target - target.mean(-1, keepdim=True)) / deviation
        error = (restored - target).square().mean(-1)
        hidden = torch.where(inside & ~visible, error, 0.0)
        count = (tokens - kept).clamp(min=0).sum()
        return {"masked": hidden.sum() / count.clamp(min=1)}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer with the trained semantic encoder as a model folder, for ``train sembo --init``."""
        self.tokenizer.save_pretrained(folder)
