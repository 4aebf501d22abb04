"""The tokenizer as files: model folders, published checkpoints, precisions, another quantizer, fingerprints."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from losatok_ext import pretrained
from losatok_ext.errors import CheckpointError
from losatok_ext.models.storage import checkpoint, precision
from losatok_ext.models.storage.folders import CONFIG_FILE, TOKENIZER, ModelFolder, open_folder
from losatok_ext.models.tokenizer import published
from losatok_ext.models.tokenizer.config import LoSATokConfig
from losatok_ext.nn.quantizers import Quantizer, QuantizerConfig, build_quantizer

T = TypeVar("T", bound="StoredTokenizer")

KEPT_IN_FLOAT32 = (
    "semantic_encoder.batch_norm.",
    "semantic_encoder.time_position",
    "semantic_encoder.frequency_position",
    "fc_a.",
    "fc_mu.",
    "fc_logvar.",
    "quantizer.",
    "decoder.head.",
)
"""The parameters that are float32 in a model of any precision, by the beginnings of their names.

They are the batch norm of the mel front end, the position embeddings, the last linear layers of the encoder (so that
latents are float32), the quantizer, and the inverse STFT with the linear layer before it, whose phases are many times
2 pi. The mel front ends have no weights and compute in float32.
"""

MADE_FROM, ORIGIN = "made_from", ("fingerprint", "weights")
"""An entry of the ``config.json`` of an int8 model, and its keys: the fingerprint of the model that it was made from,
and a hash of the int8 weights."""

_QUANTIZER = "quantizer."


class StoredTokenizer(nn.Module):
    """Base of :class:`~losatok_ext.models.tokenizer.losatok.LoSATok`: how it is saved, loaded and named.

    Attributes:
        config: the model's configuration.
        fc_mu: the linear layer that gives the latents; they have its device and dtype.
        quantizer: of the latents; None without one.
        made_from: of an int8 model the fingerprint of the model it was made from, and the :meth:`weights_digest` that
            it had then (see :meth:`fingerprint`); else None.
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
        origin = None if self.made_from is None else {MADE_FROM: dict(zip(ORIGIN, self.made_from, strict=True))}
        checkpoint.save(self, folder, TOKENIZER, origin)

    @classmethod
    def from_pretrained(
        cls: type[T],
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: str | torch.dtype | None = None,
    ) -> T:
        """The model that :meth:`save_pretrained` wrote, in eval mode.

        Args:
            folder: with ``config.json`` and ``model.safetensors``; the folder of a run of `losatok train`; or the name
                of a bundled model: ``"tiny"``.
            device: where to put it.
            dtype: ``"bfloat16"`` halves the memory of the weights, and is several times as fast on processors that
                multiply bfloat16. ``"int8"`` quarters it: linear layers have int8 weights and multiply in bfloat16.
                Some weights stay in float32 (:data:`KEPT_IN_FLOAT32`), and latents and audio are float32.
                ``"float32"`` makes a model of any precision float32. None: as it was saved; a bundled model in float32.

        Raises:
            CheckpointError: the folder holds no tokenizer, a file is missing or unreadable, a tensor is missing, left
                over or of another shape, or a weight is NaN or infinite.
            ValueError: another dtype.
        """
        chosen = None if dtype is None else precision.dtype_of(dtype)
        found = open_folder(folder, TOKENIZER)
        if chosen is None and pretrained.is_bundled(found.path):
            chosen = torch.float32
        model = checkpoint.load(cls, found, LoSATokConfig)
        model.made_from = _read_made_from(found)
        return (model if chosen is None else model.cast(chosen)).to(device)

    def cast(self: T, dtype: str | torch.dtype) -> T:
        """Change the weights to another precision, in place, and return the model.

        An int8 model keeps the fingerprint of the model it was made from (:meth:`fingerprint`). A model that was int8
        does not get back what int8 has rounded away.

        Args:
            dtype: as in :meth:`from_pretrained`.

        Raises:
            ValueError: another dtype.
        """
        chosen = precision.dtype_of(dtype)
        origin = self.fingerprint() if chosen == torch.int8 else None
        precision.cast(self, chosen, KEPT_IN_FLOAT32)
        self.made_from = None if origin is None else (origin, self.weights_digest())
        return self

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
        the name of the model it was made from, as their latents are exchangeable, until one of its weights changes.
        The hash is computed again only when a weight has changed.
        """
        own = self.weights_digest()
        return own if self.made_from is None or self.made_from[1] != own else self.made_from[0]

    def weights_digest(self) -> str:
        """16 hex digits, the hash of the configuration and the weights as they are; see :meth:`fingerprint`."""
        weights = [*self.parameters(), *self.buffers()]
        key = tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in weights)
        if self._fingerprint is None or self._fingerprint[0] != key:
            self._fingerprint = (key, fingerprint_of(self.config, self.state_dict()))
        return self._fingerprint[1]

    def quantizer_fingerprint(self) -> str | None:
        """16 hex digits that name the quantizer: a hash of its configuration and weights; None where there is none."""
        if self.quantizer is None:
            return None
        return checkpoint.digest(self.quantizer.config.to_dict(), self.quantizer.state_dict(prefix=_QUANTIZER))


def fingerprint_of(config: LoSATokConfig, state: Mapping[str, Tensor]) -> str:
    """16 hex digits that name the tokenizer of ``config`` with the weights ``state``; see :meth:`LoSATok.fingerprint`.

    What concerns only memory or training is left out of the hash, as the latents do not depend on it.
    """
    values = config.to_dict()
    for name in ("chunk_batch", "kl_clamp", "mel_loss_windows", "mel_loss_bins"):
        del values[name]
    return checkpoint.digest(values, state)


def _read_made_from(folder: ModelFolder) -> tuple[str, str] | None:
    """Fingerprint of the model that the int8 model in ``folder`` was made from, and a hash of the int8 weights.

    Raises:
        CheckpointError: the entry of ``config.json`` is damaged.
    """
    found = folder.values.get(MADE_FROM)
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ORIGIN):
        raise CheckpointError(
            f"{folder.path / CONFIG_FILE}: {MADE_FROM} should hold {' and '.join(ORIGIN)}; save the model again"
        )
    return found[ORIGIN[0]], found[ORIGIN[1]]


def _quantizer_state(quantizer: Quantizer) -> dict[str, Tensor]:
    return dict(quantizer.state_dict(prefix=_QUANTIZER))
