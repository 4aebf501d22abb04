"""The tokenizer as files and by name: model folders, published checkpoints, another quantizer, fingerprints."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from losatok_ext import pretrained
from losatok_ext.models.storage import checkpoint, precision
from losatok_ext.models.tokenizer import published
from losatok_ext.models.tokenizer.config import LoSATokConfig
from losatok_ext.nn.quantizers import Quantizer, QuantizerConfig, build_quantizer

T = TypeVar("T", bound="StoredTokenizer")

_QUANTIZER = "quantizer."


class StoredTokenizer(nn.Module):
    """Base of :class:`~losatok_ext.models.tokenizer.losatok.LoSATok`: its checkpoints and names; it computes nothing.

    Attributes:
        config: what the model was built of.
        fc_mu: whose device and dtype are those of the latents.
        quantizer: of the latents; None without one.
        made_from: of an int8 model, whose name it has and with which weights (:meth:`fingerprint`); else None.
    """

    config: LoSATokConfig
    fc_mu: nn.Linear
    quantizer: Quantizer | None
    made_from: tuple[str, str] | None

    def __init__(self) -> None:
        super().__init__()
        self.made_from = None
        self._fingerprint: tuple[object, str] | None = None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder`` (made if needed), each whole or not."""
        checkpoint.save(self, folder)

    @classmethod
    def from_pretrained(
        cls: type[T],
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: str | torch.dtype | None = None,
    ) -> T:
        """The model that :meth:`save_pretrained` wrote, in eval mode.

        Args:
            folder: with ``config.json`` and ``model.safetensors``, or the name of a bundled model: ``"tiny"``.
            device: where to put it.
            dtype: ``"bfloat16"`` halves the weights and, where the processor multiplies it, several times the speed;
                what does not bear it stays in float32 (see :mod:`losatok_ext.models.storage.precision`), as latents and
                audio do. ``"int8"`` quarters them: linear layers have int8 weights and multiply in bfloat16.
                ``"float32"`` makes a model of any precision float32. None: as it was saved, a bundled model in float32.

        Raises:
            CheckpointError: a file is missing or unreadable, or a tensor is missing, left over or of another shape.
            ValueError: another dtype.
        """
        chosen = None if dtype is None else precision.dtype_of(dtype)
        folder = pretrained.resolve(folder)
        if chosen is None and pretrained.is_bundled(folder):
            chosen = torch.float32
        model = checkpoint.load(cls, folder)
        model.made_from = checkpoint.read_made_from(folder)
        return (model if chosen is None else precision.cast(model, chosen)).to(device)

    @classmethod
    def from_reference_checkpoint(
        cls: type[T],
        path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        config: LoSATokConfig | Mapping[str, Any] | None = None,
        hidden_dim: int = 512,
        frame_rate: int = 25,
        semantic_encoder: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    ) -> T:
        """The model of a checkpoint in the published layout, in eval mode. Nothing is fetched and no pickle is run.

        The layout has no quantizer: one in ``config`` is new.

        Args:
            path_or_state_dict: a ``.safetensors`` file, a ``.pth``/``.pt``/``.bin`` file (read with
                ``weights_only=True``), or the state dict itself.
            config: a LoSATokConfig, or the published configuration's own dict; None is the published model.
            hidden_dim: of the semantic bottleneck; used with a dict or None, as the published configuration does not
                hold it.
            frame_rate: tokens per second; likewise.
            semantic_encoder: the semantic encoder's weights where they are kept apart: a file, a state dict or a folder
                of sharded safetensors, by MiDashengLM's names (``audio_encoder.*``; of a large model nothing else is
                read) or bare.

        Raises:
            CheckpointError: unreadable, or tensors missing, left over or of another shape.
            ConfigError: ``config`` holds an unknown key, or contradicts ``frame_rate``.
        """
        if not isinstance(config, LoSATokConfig):
            config = LoSATokConfig.from_published(config or {}, hidden_dim, frame_rate)
        state = published.read(path_or_state_dict, config, semantic_encoder)
        if config.quantizer is not None:
            state.update(_quantizer_state(build_quantizer(config.quantizer, config.latent_dim)))
        return checkpoint.build(cls, config, state, "the published checkpoint")

    def to_reference_state_dict(self) -> dict[str, Tensor]:
        """The weights by the published checkpoint's names and layout, its computed buffers included.

        The quantizer is left out: the layout has no names for it.
        """
        state = {name: value for name, value in self.state_dict().items() if not name.startswith(_QUANTIZER)}
        return published.to_published(precision.widened(state), self.config)

    def with_quantizer(self: T, quantizer: Quantizer | QuantizerConfig | None) -> T:
        """A model with the same weights (not copied) and another quantizer, or none; in eval mode.

        Args:
            quantizer: a quantizer of ``latent_dim`` features, whose weights are taken; or the configuration of a new
                one.
        """
        if isinstance(quantizer, QuantizerConfig):
            quantizer = build_quantizer(quantizer, self.config.latent_dim)
        config = dataclasses.replace(self.config, quantizer=None if quantizer is None else quantizer.config)
        state = {name: value for name, value in self.state_dict().items() if not name.startswith(_QUANTIZER)}
        if quantizer is not None:
            state.update(_quantizer_state(quantizer))
        model = checkpoint.build(type(self), config, state, "the quantizer").to(self.fc_mu.weight.device)
        if model.quantizer is not None:
            model.quantizer.to(self.fc_mu.weight.dtype)
        model.made_from = self.made_from
        return model

    def fingerprint(self) -> str:
        """16 hex digits that name this model: a hash of its configuration and weights.

        Weights are rounded to bfloat16 first, so that a model and its bfloat16 copy have one name. An int8 model has
        the name of the one it was made from, whose latents it takes and gives, as long as it has the weights that it
        was made with. The hash is kept until a weight changes.
        """
        own = self.weights_digest()
        return own if self.made_from is None or self.made_from[1] != own else self.made_from[0]

    def weights_digest(self) -> str:
        """16 hex digits, the hash of the configuration and the weights as they are; see :meth:`fingerprint`."""
        weights = [*self.parameters(), *self.buffers()]
        key = tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in weights)
        if self._fingerprint is None or self._fingerprint[0] != key:
            self._fingerprint = (key, checkpoint.fingerprint(self.config, self.state_dict()))
        return self._fingerprint[1]

    def quantizer_fingerprint(self) -> str | None:
        """16 hex digits that name the quantizer: a hash of its configuration and weights; None where there is none."""
        if self.quantizer is None:
            return None
        return checkpoint.digest(self.quantizer.config.to_dict(), self.quantizer.state_dict(prefix=_QUANTIZER))


def _quantizer_state(quantizer: Quantizer) -> dict[str, Tensor]:
    return dict(quantizer.state_dict(prefix=_QUANTIZER))
