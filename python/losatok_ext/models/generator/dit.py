"""DiT: a diffusion transformer that generates the latents of a tokenizer from text and other conditions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from losatok_ext.errors import ConfigError, UserError
from losatok_ext.masks import keep_valid
from losatok_ext.models.generator.dit_conditions import Conditions
from losatok_ext.models.generator.dit_config import DiTConfig
from losatok_ext.models.generator.dit_parts import LatentNormalization, TimeEmbedding, embedding, table_dtype
from losatok_ext.models.generator.text import ByteTextEncoder, HuggingFaceTextEncoder
from losatok_ext.models.storage import checkpoint
from losatok_ext.models.storage.folders import DIT, open_folder
from losatok_ext.nn.dit_block import DiTBlock
from losatok_ext.nn.modulation import ModulatedNorm, Modulation
from losatok_ext.nn.rotary import RotaryEmbedding
from losatok_ext.ops import checks


class DiT(nn.Module):
    """The network of the generator: it maps noisy latents, a time and conditions to a velocity.

    Latents pass through a linear map, transformer blocks with long skips (:class:`losatok_ext.nn.DiTBlock`), and a
    modulated norm with a linear map back. The time and global conditions modulate every block (adaLN), time-aligned
    conditions are added to the frames, and text enters by cross-attention. A condition that is missing or dropped is
    replaced by a learned null embedding.

    A clip's output is the same alone, in any batch and with any padding (to rounding). The output of a new model is
    zero; ``torch.manual_seed`` decides its random weights.

    Args:
        config: what to build; None is the preset ``base``.

    Attributes:
        recompute_blocks: compute each block again in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: DiTConfig | None = None) -> None:
        super().__init__()
        config = DiTConfig() if config is None else config
        self.config = config
        self.recompute_blocks = False
        width = config.width
        self.statistics = LatentNormalization(config.latent_dim)
        self.proj_in = nn.Linear(config.latent_dim, width)
        self.time = TimeEmbedding(config.time_features, width)
        self.rotary = RotaryEmbedding(config.rotary_dim) if config.rotary_dim else None
        self.text_encoder: ByteTextEncoder | None = None
        if config.text_dim and config.text_encoder == "bytes":
            self.text_encoder = ByteTextEncoder(config.text_dim, config.text_layers, config.text_bytes)
        self._hub: list[HuggingFaceTextEncoder] = []  # in a list: not part of the state
        self.text = embedding(config.text_dim, width) if config.text_dim else None
        self.global_ = embedding(config.global_dim, width) if config.global_dim else None
        for name in ("text", "aligned", "global"):
            dim = getattr(config, f"{name}_dim")
            self.register_parameter(f"null_{name}", nn.Parameter(torch.randn(dim) * 0.02) if dim else None)
        self.shared = nn.Linear(width, 6 * width) if config.modulation == "shared" else None
        self.blocks = nn.ModuleList(DiTBlock(config.block(index)) for index in range(config.depth))
        self.final_modulation = Modulation(width, 2, width)
        self.final_norm = ModulatedNorm(width, config.norm_weights)
        self.proj_out = nn.Linear(width, config.latent_dim)
        nn.init.xavier_uniform_(self.proj_in.weight)
        nn.init.zeros_(self.proj_in.bias)
        self.final_modulation.reset_to_zero()
        zero = [self.proj_out] if self.shared is None else [self.proj_out, self.shared]
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    null_text: Tensor | None
    null_aligned: Tensor | None
    null_global: Tensor | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.proj_in.weight.device

    # -- the network ---------------------------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, t: Tensor, conditions: Conditions | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """The velocity at noisy latents.

        Args:
            x: [B, T, d], normalized latents (:meth:`normalise`) mixed with noise; any floating dtype.
            t: [B], or [] for one time for all items; within 0..1.
            conditions: what to generate; conditions that are None are replaced by the null embeddings.
            lengths: [B] int64, tokens of each clip; None: all T. What lies past is not read, even if it is NaN.

        Returns:
            [B, T, d] in x's dtype; zeros past a clip's tokens.

        Raises:
            TypeError: ``x``, ``t`` or a feature is not a floating-point tensor, or ``conditions.drop`` is not bool.
            ValueError: a wrong shape, lengths out of range, or conditions that the model does not take.
        """
        d = self.config.latent_dim
        checks.floating("x", x)
        checks.shape("x", x, (None, None, d), "[B, T, d]")
        batch, time = x.shape[:2]
        checks.floating("t", t)
        if t.dim() != 0:
            checks.shape("t", t, (batch,), "[B]")
        conditions = Conditions() if conditions is None else conditions
        self._check_conditions(conditions, batch, time, x.device)
        lengths = checks.lengths(lengths, batch, time, x.device)

        dtype = self.proj_in.weight.dtype
        h = self.proj_in(keep_valid(x, lengths).to(dtype)).to(dtype)  # under autocast the residual stream stays float32
        emb = self.time(t.to(x.device).expand(batch))
        if self.global_ is not None:
            emb = emb + self.global_(self._global_condition(conditions, batch))
        condition = F.silu(emb)
        context, context_lengths = self._context(conditions, batch)
        inputs: dict[str, Any] = {
            "shared": None if self.shared is None else self.shared(condition),
            "lengths": lengths,
            "rope": None if self.rotary is None else self.rotary(time, table_dtype(dtype)),
            "aligned": self._aligned(conditions, batch, time, lengths),
            "context": context,
            "context_lengths": context_lengths,
        }
        skips: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            skip = skips.pop() if block.skip is not None else None
            if self.recompute_blocks and torch.is_grad_enabled():
                h = recompute(block, h, condition, skip=skip, **inputs, use_reentrant=False)
            else:
                h = block(h, condition, skip=skip, **inputs)
            if index < self.config.skips:
                skips.append(h)
        shift, scale = self.final_modulation(condition)
        return keep_valid(self.proj_out(self.final_norm(h, shift, scale)), lengths).to(x.dtype)

    def _check_conditions(self, conditions: Conditions, batch: int, time: int, device: torch.device) -> None:
        """Check that the model takes every given condition, and that its shape fits the latents.

        Raises:
            TypeError: a condition is not a tensor of the right dtype.
            ValueError: the model does not take it, or its shape or device is wrong.
        """
        c = self.config
        sizes = {
            "text": ((batch, None, c.text_dim), f"[B, S, C_text] with the model's text_dim of {c.text_dim},"),
            "aligned": (
                (batch, time, c.aligned_dim),
                f"[B, T, C_aligned] with the model's aligned_dim of {c.aligned_dim},",
            ),
            "global_": ((batch, c.global_dim), f"[B, C_global] with the model's global_dim of {c.global_dim},"),
        }
        for name, (shape, meaning) in sizes.items():
            x = getattr(conditions, name)
            if x is None:
                continue
            if shape[-1] == 0:
                option = name.rstrip("_") + "_dim"
                raise ValueError(f"conditions.{name} should be None: this model takes none ({option}=0)")
            checks.floating(f"conditions.{name}", x)
            checks.shape(f"conditions.{name}", x, shape, meaning)
        if conditions.text_lengths is not None and conditions.text is None:
            raise ValueError("conditions.text_lengths should come with conditions.text, which is None")
        if conditions.drop is not None:
            if not isinstance(conditions.drop, Tensor) or conditions.drop.dtype != torch.bool:
                raise TypeError("conditions.drop should be a bool tensor [B], True where conditions are dropped")
            checks.shape("conditions.drop", conditions.drop, (batch,), "[B]")
        for name, x in conditions.tensors().items():
            if x.device != device:
                raise ValueError(
                    f"conditions.{name} should be on x's device {device}, got {x.device}; use conditions.to"
                )

    def _context(self, conditions: Conditions, batch: int) -> tuple[Tensor | None, Tensor | None]:
        """The inputs of cross-attention [B, S, C] and their lengths (None: all S); the null token without a text."""
        if self.text is None or self.null_text is None:
            return None, None
        null = self.null_text
        text, lengths = conditions.text, conditions.text_lengths
        if text is None or text.shape[1] == 0:
            return self.text(null.expand(batch, 1, -1)), None
        size = text.shape[1]
        lengths = checks.lengths(lengths, batch, size, text.device, "conditions.text_lengths")
        text = keep_valid(text, lengths).to(null.dtype)
        without = conditions.drop
        if lengths is not None:
            without = lengths == 0 if without is None else without | (lengths == 0)
        if without is None:
            return self.text(text), lengths
        first = torch.where(without[:, None], null, text[:, 0])
        text = torch.cat([first[:, None], text[:, 1:]], dim=1)
        lengths = torch.full_like(without, size, dtype=torch.int64) if lengths is None else lengths
        return self.text(text), torch.where(without, 1, lengths)

    def _aligned(self, conditions: Conditions, batch: int, time: int, lengths: Tensor | None) -> Tensor | None:
        if self.null_aligned is None:
            return None
        if conditions.aligned is None:
            return self.null_aligned.expand(batch, time, -1)
        aligned = keep_valid(conditions.aligned, lengths).to(self.null_aligned.dtype)
        if conditions.drop is None:
            return aligned
        return torch.where(conditions.drop[:, None, None], self.null_aligned, aligned)

    def _global_condition(self, conditions: Conditions, batch: int) -> Tensor:
        assert self.null_global is not None
        if conditions.global_ is None:
            return self.null_global.expand(batch, -1)
        given = conditions.global_.to(self.null_global.dtype)
        return given if conditions.drop is None else torch.where(conditions.drop[:, None], self.null_global, given)

    # -- text ----------------------------------------------------------------------------------------------------------

    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features of ``texts`` for :class:`Conditions`, from the text encoder that the configuration names.

        The ``bytes`` encoder takes gradients. A Hugging Face encoder is loaded at the first call and is frozen.

        Returns:
            (text [B, S, C_text], text_lengths [B] int64), on the model's device.

        Raises:
            TypeError: ``texts`` is not a list of texts.
            UserError: a text is too long; the encoder cannot be loaded; or the model has none.
            ConfigError: the Hugging Face encoder's features are not ``text_dim`` wide.
        """
        if self.text_encoder is not None:
            return self.text_encoder(texts)
        name = self.config.hub_name
        if name is None or self.text is None:
            raise UserError(
                f"this model has no text encoder (text_encoder={self.config.text_encoder!r}, text_dim="
                f"{self.config.text_dim}); give the features of an encoder of your own in Conditions(text=...)"
            )
        if not self._hub:
            encoder = HuggingFaceTextEncoder(name)
            if encoder.dim != self.config.text_dim:
                raise ConfigError(
                    f"text_dim should be {encoder.dim}, the width of {name}'s features, got {self.config.text_dim}"
                )
            self._hub.append(encoder)
        return self._hub[0].to(self.device)(texts)

    # -- latents -------------------------------------------------------------------------------------------------------

    def set_latents(self, mean: Tensor, std: Tensor, tokenizer: str | None = None) -> None:
        """Store the statistics of the latents to learn, and the tokenizer that they are of.

        Args:
            mean: [d], mean of each dimension over the valid tokens of the training set.
            std: [d], its standard deviation; positive.
            tokenizer: ``LoSATok.fingerprint()``; None: do not change the stored one.

        Raises:
            ValueError: another shape, values that are not finite, or a deviation of 0.
        """
        d = self.config.latent_dim
        for name, values in (("mean", mean), ("std", std)):
            checks.shape(name, values, (d,), "[d]")
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name} should be finite; measure it over latents without NaN")
        if not bool((std > 0).all()):
            raise ValueError(f"std should be positive, got {float(std.min())} in dimension {int(std.argmin())}")
        self.statistics.mean.copy_(mean)
        self.statistics.std.copy_(std)
        if tokenizer is not None:
            self.config = dataclasses.replace(self.config, tokenizer=tokenizer)

    def normalise(self, z: Tensor) -> Tensor:
        """Latents [..., d] of the tokenizer, scaled to mean 0 and deviation 1 in each dimension for the network."""
        return ((z - self.statistics.mean) / self.statistics.std).to(z.dtype)

    def denormalise(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        return (x * self.statistics.std + self.statistics.mean).to(x.dtype)

    def check_tokenizer(self, fingerprint: str) -> None:
        """Check that the model was trained on the latents of a tokenizer. A model that stores no tokenizer fits all.

        Args:
            fingerprint: ``LoSATok.fingerprint()`` of the tokenizer.

        Raises:
            UserError: it was trained on the latents of another tokenizer.
        """
        known = self.config.tokenizer
        if known is not None and known != fingerprint:
            raise UserError(
                f"the generator was trained on latents of the tokenizer {known}, and these are of {fingerprint}; "
                "use that tokenizer's model folder, or train a generator on these latents"
            )

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder`` (made if needed), each whole or not."""
        checkpoint.save(self, folder, DIT)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> DiT:
        """The model that :meth:`save_pretrained` wrote, in eval mode.

        Raises:
            CheckpointError: the folder holds no network of a generator, a file is missing or unreadable, a tensor is
                missing, left over or of another shape, or a weight is NaN or infinite.
        """
        return checkpoint.load(cls, open_folder(folder, DIT), DiTConfig).to(device)
