"""The generator: a DiT, the flow that it learns, and whether it sees the context of an edit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from losatok_ext.errors import UserError
from losatok_ext.masks import valid_mask
from losatok_ext.models.generator.dit import DiT
from losatok_ext.models.generator.dit_conditions import Conditions
from losatok_ext.models.generator.dit_config import DiTConfig
from losatok_ext.models.storage import checkpoint
from losatok_ext.models.storage.folders import GENERATOR, open_folder
from losatok_ext.models.storage.stored_config import StoredConfig
from losatok_ext.nn.flow_matching import ConditionDropout, FlowMatching, SpanMasking
from losatok_ext.nn.noise import whole_batch


@dataclass(frozen=True)
class GeneratorConfig(StoredConfig):
    """The configuration of a :class:`Generator`.

    Raises:
        ConfigError: with ``context``, ``dit.aligned_dim`` is not ``latent_dim + 1``.
    """

    dit: DiTConfig = field(default_factory=DiTConfig)
    flow: FlowMatching = field(default_factory=FlowMatching)
    context: bool = False
    """Whether the time-aligned condition is the known part of a clip: its latents, with zeros elsewhere, and a channel
    that is 1 where they are known (``dit.aligned_dim = latent_dim + 1``). Such a generator is better at editing."""

    def _check_fit(self) -> None:
        fits = not self.context or self.dit.aligned_dim == self.dit.latent_dim + 1
        self._require(
            fits,
            "context",
            f"false, or dit.aligned_dim latent_dim + 1 = {self.dit.latent_dim + 1} (it is {self.dit.aligned_dim})",
        )


class Generator(nn.Module):
    """Generates a tokenizer's latents from text, and edits them.

    It normalizes latents itself (:meth:`DiT.set_latents`): its inputs and outputs are latents of the tokenizer.

    Args:
        config: what to build.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self._config = config
        self.dit = DiT(config.dit)

    @property
    def config(self) -> GeneratorConfig:
        """The configuration, with the fingerprint of the tokenizer once :meth:`DiT.set_latents` has stored it."""
        return dataclasses.replace(self._config, dit=self.dit.config)

    @property
    def flow(self) -> FlowMatching:
        """The direction of the flow, and how training times are drawn."""
        return self._config.flow

    @property
    def context(self) -> bool:
        """Whether the generator sees the known part of a clip (:attr:`GeneratorConfig.context`)."""
        return self._config.context

    @property
    def latent_dim(self) -> int:
        """d, width of the latents."""
        return self.dit.config.latent_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.dit.device

    def forward(
        self, x: Tensor, t: Tensor, conditions: Conditions | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """The velocity at normalised latents ``x`` [B, T, d] and times ``t`` [B]; see :meth:`DiT.forward`."""
        return self.dit(x, t, conditions, lengths)

    def conditions(
        self,
        batch: int,
        time: int,
        texts: Sequence[str] | None = None,
        known: Tensor | None = None,
        given: Tensor | None = None,
        global_: Tensor | None = None,
    ) -> Conditions:
        """The conditions of a batch, on the generator's device.

        Args:
            batch: B.
            time: T.
            texts: one for each item; ``""`` is no text. None: no item has a text.
            known: [B, T, d] latents of the tokenizer. They are read where ``given`` is True, and may be NaN elsewhere.
            given: [B, T] bool.
            global_: [B, C_global].

        Raises:
            UserError: texts for a generator that takes none, one that is too long, or ``known`` for a generator that
                was trained without context.
            ValueError: not one text for each item.
        """
        text = lengths = aligned = None
        if texts is not None and any(texts):
            if len(texts) != batch:
                raise ValueError(f"texts should be one for each of the {batch} items, got {len(texts)}")
            if not self.dit.config.text_dim:
                raise UserError("this generator takes no text (text_dim=0); leave the text out, or train one that does")
            text, lengths = self.dit.encode_text(texts)
        if known is not None and not self.context:
            raise UserError(
                "this generator was trained without context and cannot see known latents; train one with "
                "generator.context=true"
            )
        if self.context:
            aligned = torch.zeros(batch, time, self.latent_dim + 1, device=self.device)
            if known is not None and given is not None:
                inside = given.to(self.device)[..., None]
                latents = self.dit.normalise(known.to(self.device, torch.float32))
                aligned = torch.cat([torch.where(inside, latents, 0.0), inside.float()], dim=-1)
        return Conditions(text=text, text_lengths=lengths, aligned=aligned, global_=global_)

    def loss(
        self,
        latents: Tensor,
        lengths: Tensor | None = None,
        texts: Sequence[str] | None = None,
        global_: Tensor | None = None,
        masking: SpanMasking | None = None,
        dropout: ConditionDropout | None = None,
        all_lengths: Tensor | None = None,
    ) -> Tensor:
        """The flow-matching loss of a training batch: a float32 scalar, in units of normalised latents.

        With context, some parts of each clip are known (:class:`SpanMasking`), and the loss is a mean over the others;
        where the context is hidden, over all.

        Args:
            latents: [B, T, d] of the tokenizer; they take no gradient.
            lengths: [B] int64 tokens; None: all T.
            texts: one for each item; ``""`` is no text.
            global_: [B, C_global].
            masking: which parts are known; None: the defaults of :class:`SpanMasking`.
            dropout: of conditions; None: the defaults of :class:`ConditionDropout`.
            all_lengths: [B'] int64 tokens of all clips of a larger batch, where these clips are only a part of it
                (inside ``nn.noise.rows_of``). T is that of the larger batch. The result is then what these clips add to
                the loss of the larger batch.

        Raises:
            UserError: texts for a generator that takes none, or one that is too long.
            ValueError: not one text for each item.
        """
        batch, time, device = len(latents), latents.shape[1], self.device
        latents = latents.detach().to(device, torch.float32)
        counts = torch.full((batch,), time, device=device) if lengths is None else lengths.to(device)
        everyone = counts if all_lengths is None else all_lengths.to(device)
        given = counted = None
        with whole_batch() as own:
            hidden = (dropout or ConditionDropout()).draw(len(everyone), device)
            inside = valid_mask(everyone, time)
            if self.context:
                blind = (hidden["aligned"] | hidden["joint"])[:, None]
                counted = ((masking or SpanMasking()).draw(everyone, time) | blind) & inside
        share = None
        if all_lengths is not None:
            targets = inside if counted is None else counted
            share = targets[own].sum() / targets.sum().clamp(min=1)
        hidden = {name: rows[own] for name, rows in hidden.items()}
        if counted is not None:
            counted = counted[own]
            given = valid_mask(counts, time) & ~counted
        conditions = self.conditions(batch, time, texts, latents if self.context else None, given, global_)
        conditions = self._hide(conditions, hidden)
        loss = self.flow.loss(
            lambda x, t: self(x, t, conditions, lengths), self.dit.normalise(latents), lengths, counted
        )
        return loss if share is None else loss * share

    def _hide(self, conditions: Conditions, hidden: Mapping[str, Tensor]) -> Conditions:
        """``conditions`` without those that are hidden from an item. The context was hidden before."""
        lengths, global_, text = conditions.text_lengths, conditions.global_, conditions.text
        if text is not None:
            if lengths is None:
                lengths = torch.full((len(text),), text.shape[1], device=text.device)
            lengths = torch.where(hidden["text"], 0, lengths)
        if global_ is not None and self.dit.null_global is not None:
            global_ = torch.where(hidden["global_"][:, None], self.dit.null_global.to(global_.dtype), global_)
        return dataclasses.replace(conditions, text_lengths=lengths, global_=global_, drop=hidden["joint"])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder`` (made if needed), each whole or not."""
        checkpoint.save(self, folder, GENERATOR)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Generator:
        """The generator that :meth:`save_pretrained` wrote, in eval mode.

        Args:
            folder: of the generator, or of the run of `losatok train generator` that trained it.
            device: where to put it.
            dtype: of its weights, a floating-point one; None: as they were saved. The latents' statistics stay in
                float32.

        Raises:
            CheckpointError: the folder holds no generator, a file is missing or unreadable, a tensor is missing, left
                over or of another shape, or a weight is NaN or infinite.
        """
        return checkpoint.load(cls, open_folder(folder, GENERATOR), GeneratorConfig).to(device, dtype)
