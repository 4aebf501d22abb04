"""Semantic teachers, found by name: they map 16 kHz audio to features [B, T, D] at 25 Hz."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from losatok_ext import pretrained
from losatok_ext.errors import CheckpointError, UserError
from losatok_ext.models.storage import checkpoint
from losatok_ext.models.storage.folders import TOKENIZER, is_model, open_folder
from losatok_ext.models.tokenizer import huggingface_encoder, published
from losatok_ext.models.tokenizer.config import LoSATokConfig
from losatok_ext.models.tokenizer.losatok import LoSATok

HUGGING_FACE, HUB = "hf:", "hub:"
_PREFIX = "semantic_encoder."
_ENCODER_FIELDS = (
    "sample_rate", "hop_length", "embed_dim", "depth", "num_heads", "mlp_ratio", "semantic_mels", "semantic_n_fft",
    "top_db", "chunk_frames", "semantic",
)  # fmt: skip
KINDS = (
    "a model folder or the folder of a run of `losatok train`, a bundled model, a file or folder of published LoSATok "
    "or MiDashengLM weights, hub:NAME (such weights on the Hugging Face hub), or hf:FOLDER_OR_NAME[#LAYER] (any audio "
    "encoder of transformers)"
)
"""The names that :func:`open_teacher` takes, for help texts and messages."""


@dataclass(frozen=True)
class Teacher:
    """A frozen semantic encoder: call it on audio.

    Attributes:
        name: the name that it was opened by.
        encoder: the module; it takes no gradients.
        config: of a model with this encoder; ``embed_dim`` is D.
    """

    name: str
    encoder: nn.Module
    config: LoSATokConfig

    @property
    def dim(self) -> int:
        """D, width of the features."""
        return self.config.embed_dim

    @property
    def sample_rate(self) -> int:
        """Hz of the audio that it takes."""
        return self.config.sample_rate

    @property
    def samples_per_token(self) -> int:
        """Samples between its frames of features: 640, which is 25 frames per second."""
        return self.config.samples_per_token * self.config.semantic_upsampling

    def __call__(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of each clip, the same as if it were alone.

        Args:
            audio: [B, N] float32 at :attr:`sample_rate`; what lies past a length is not read.
            lengths: [B] int64 samples, on the CPU.

        Returns:
            (features [B, T, D], frames [B] int64); zeros past a clip's.
        """
        return self.encoder(audio, lengths)

    def to(self, device: torch.device | str) -> Teacher:
        """The teacher on ``device``."""
        return dataclasses.replace(self, encoder=self.encoder.to(device))

    def fingerprint(self) -> str:
        """16 hex digits that name the encoder: a hash of its architecture, and of its weights rounded to bfloat16."""
        values = self.config.to_dict()
        keys = _ENCODER_FIELDS if self.config.semantic is None else ("embed_dim", "semantic")
        return checkpoint.digest({key: values.get(key) for key in keys}, self.encoder.state_dict())


def open_teacher(name: str, config: LoSATokConfig | None = None) -> Teacher:
    """The teacher that ``name`` means, frozen, in eval mode, on the CPU.

    Args:
        name: a model folder (or the folder of a run that holds one), published LoSATok or MiDashengLM weights (a
            ``.safetensors`` or ``.pth`` file, or a folder of shards, of which only the encoder is read), ``hub:NAME``
            for such weights on the Hugging Face hub, or ``hf:FOLDER_OR_NAME`` for any audio encoder of transformers
            that takes 16 kHz, ``#LAYER`` after it choosing the hidden states.
        config: the shape of the encoder for published weights, which do not come with one; None is the published model.

    Raises:
        UserError: a library is missing, or a number of a layer is wrong.
        CheckpointError: it does not exist, cannot be read, or does not fit ``config``.
    """
    model_config, state = teacher_state(name, config)
    with torch.device("meta"):
        model = LoSATok(model_config)
    encoder = model.semantic_encoder
    checkpoint.check_weights(encoder, state, name)
    encoder.load_state_dict(state, assign=True)
    return Teacher(name, encoder.requires_grad_(False).eval(), model_config)


def teacher_state(name: str, config: LoSATokConfig | None = None) -> tuple[LoSATokConfig, dict[str, Tensor]]:
    """The configuration of a tokenizer whose semantic encoder is the teacher ``name``, and that encoder's weights.

    Args:
        name: as in :func:`open_teacher`.
        config: of the tokenizer that gets this encoder; only what belongs to the encoder is changed. None: the
            published configuration.

    Raises:
        UserError: a library is missing, or a number of a layer is wrong.
        CheckpointError: it does not exist, cannot be read, or does not fit ``config``.
    """
    base = config or LoSATokConfig()
    if name.startswith(HUGGING_FACE):
        source, _, layer = name.removeprefix(HUGGING_FACE).partition("#")
        if layer and not re.fullmatch(r"-?\d+", layer):
            raise UserError(f"{name}: after # comes the number of a layer, got {layer!r}")
        semantic = huggingface_encoder.describe(source, int(layer) if layer else None)
        ours = dataclasses.replace(base, semantic=semantic, embed_dim=huggingface_encoder.width(semantic), num_heads=1)
        return ours, huggingface_encoder.pretrained_state(source)
    path = _from_hub(name.removeprefix(HUB)) if name.startswith(HUB) else pretrained.resolve(name)
    if is_model(path):
        folder = open_folder(path, TOKENIZER)
        theirs = folder.config(LoSATokConfig)
        weights = checkpoint.read_weights(folder)
        state = {n.removeprefix(_PREFIX): t for n, t in weights.items() if n.startswith(_PREFIX)}
        return (theirs if config is None else _with_encoder_of(base, theirs)), state
    if not path.exists():
        raise CheckpointError(f"{name} does not exist; a teacher is {KINDS}")
    found = published.semantic_state(path, base)
    return base, {n.removeprefix(_PREFIX): t for n, t in found.items()}


def _with_encoder_of(config: LoSATokConfig, theirs: LoSATokConfig) -> LoSATokConfig:
    return dataclasses.replace(config, **{name: getattr(theirs, name) for name in _ENCODER_FIELDS})


def _from_hub(name: str) -> Path:
    """A folder with those files of the hub's ``name`` that hold the audio encoder.

    Raises:
        UserError: huggingface_hub is missing.
        CheckpointError: the files cannot be had.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise UserError(f"{HUB}{name} needs huggingface_hub ({error}); pip install 'losatok-ext[text]'") from None
    try:
        try:
            index = Path(hf_hub_download(name, "model.safetensors.index.json"))
        except EntryNotFoundError:
            return Path(hf_hub_download(name, "model.safetensors"))
        where = json.loads(index.read_text())["weight_map"]
        wanted = {file for tensor, file in where.items() if tensor.startswith("audio_encoder.")} or set(where.values())
        for file in sorted(wanted):
            hf_hub_download(name, file)
    except Exception as error:  # the network and its libraries raise many kinds
        reason = str(error).strip().split("\n", 1)[0]
        raise CheckpointError(
            f"{HUB}{name} cannot be fetched ({reason}); download it elsewhere and pass its folder"
        ) from None
    return index.parent
