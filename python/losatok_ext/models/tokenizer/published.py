"""Conversion between the published checkpoint's names and layout and ours, without loss in both directions.

| published | ours |
|---|---|
| ``semantic_encoder.encoder.*``, with ``init_bn.1``, ``patch_embed.proj``, ``attn``, ``mlp`` | ``semantic_encoder.*`` |
| ``semantic_encoder.bottleneck.{downsample,upsample}.{0,2}`` | ``bottleneck.{down,up}.{fc1,fc2}`` |
| ``dasheng_tokenizer.encoder.*`` | ``acoustic_encoder.*`` |
| ``dasheng_tokenizer.upsampler.*``, ``dasheng_tokenizer.decoder.*`` | ``decoder.*`` |
| ``fc_a.*``, ``fc_mu.*``, ``fc_logvar.*`` | the same |

Patch embeddings are convolutions there and matrices here (the same numbers in the same order); position embeddings are
[1, D, 1, T] there and [T, D] here. Windows and filter banks are computed, and compared with those of the checkpoint.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from losatok_ext.audio.constants import hann_window
from losatok_ext.audio.mel import mel_filter_bank
from losatok_ext.errors import CheckpointError
from losatok_ext.models.storage.checkpoint import read_safetensors
from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH, LoSATokConfig

Source = str | os.PathLike[str] | Mapping[str, Tensor]

SEMANTIC = "semantic_encoder.encoder."
_NAMES = [
    ("semantic_encoder.encoder.init_bn.1.", "semantic_encoder.batch_norm."),
    ("semantic_encoder.encoder.patch_embed.proj.", "semantic_encoder.patch_embed."),
    ("semantic_encoder.encoder.time_pos_embed", "semantic_encoder.time_position"),
    ("semantic_encoder.encoder.freq_pos_embed", "semantic_encoder.frequency_position"),
    ("semantic_encoder.encoder.blocks.{}.attn.", "semantic_encoder.blocks.{}.attention."),
    ("semantic_encoder.encoder.blocks.{}.mlp.fc", "semantic_encoder.blocks.{}.fc"),
    ("semantic_encoder.encoder.", "semantic_encoder."),
    ("semantic_encoder.bottleneck.downsample.0.", "bottleneck.down.fc1."),
    ("semantic_encoder.bottleneck.downsample.2.", "bottleneck.down.fc2."),
    ("semantic_encoder.bottleneck.upsample.0.", "bottleneck.up.fc1."),
    ("semantic_encoder.bottleneck.upsample.2.", "bottleneck.up.fc2."),
    ("dasheng_tokenizer.encoder.", "acoustic_encoder."),
    ("dasheng_tokenizer.upsampler.", "decoder.upsample_"),
    ("dasheng_tokenizer.decoder.backbone.convnext.{}.dwconv.", "decoder.backbone.blocks.{}.conv."),
    ("dasheng_tokenizer.decoder.backbone.convnext.{}.pwconv{}.", "decoder.backbone.blocks.{}.fc{}."),
    ("dasheng_tokenizer.decoder.backbone.convnext.{}.", "decoder.backbone.blocks.{}."),
    ("dasheng_tokenizer.decoder.backbone.final_layer_norm.", "decoder.backbone.final_norm."),
    ("dasheng_tokenizer.decoder.", "decoder."),
]
"""Beginnings of names, published and ours; ``{}`` is a number. The first that fits counts, in both directions."""

_IGNORED = re.compile(r"semantic_encoder\.encoder\.(outputlayer|head)\.")
"""Classifiers from the training of the semantic encoder. No latent depends on them."""


def _rule(beginning: str, other: str) -> tuple[re.Pattern[str], str]:
    """A pattern for names that begin so, and what replaces the beginning."""
    first, *rest = other.split("{}")
    pattern = r"(\d+)".join(map(re.escape, beginning.split("{}")))
    return re.compile(pattern), first + "".join(f"\\{n}{part}" for n, part in enumerate(rest, 1))


_TO_OURS = [_rule(published, ours) for published, ours in _NAMES]
_TO_PUBLISHED = [_rule(ours, published) for published, ours in _NAMES]


def _rename(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        if match := pattern.match(name):
            return match.expand(replacement) + name[match.end() :]
    return name


def _constants(config: LoSATokConfig) -> dict[str, Callable[[], Tensor]]:
    """The checkpoint's computed buffers by name."""
    front, acoustic = SEMANTIC + "front_end.0.", "dasheng_tokenizer.encoder.front_end.mel_spec."
    rate = config.sample_rate
    return {
        front + "spectrogram.window": lambda: hann_window(config.semantic_n_fft),
        front + "mel_scale.fb": lambda: mel_filter_bank(config.semantic_n_fft, config.semantic_mels, rate),
        acoustic + "spectrogram.window": lambda: hann_window(config.acoustic_n_fft),
        acoustic + "mel_scale.fb": lambda: mel_filter_bank(config.acoustic_n_fft, config.acoustic_mels, rate),
        "dasheng_tokenizer.decoder.head.istft.window": lambda: hann_window(config.istft_n_fft),
    }


def _reshape_to_ours(name: str, tensor: Tensor) -> Tensor:
    """A published tensor in the shape of ours; one of another shape as it is, for the check of shapes to refuse."""
    if name.endswith("patch_embed.weight") and tensor.dim() == 4:
        return tensor.flatten(1)
    if name == "semantic_encoder.time_position" and tensor.dim() == 4 and tensor.shape[::2] == (1, 1):
        return tensor[0, :, 0].t().contiguous()
    if name == "semantic_encoder.frequency_position" and tensor.dim() == 4:
        return tensor.flatten()
    return tensor


def _reshape_to_published(name: str, tensor: Tensor, config: LoSATokConfig) -> Tensor:
    if name == "semantic_encoder.patch_embed.weight":
        return tensor.view(-1, 1, config.semantic_mels, SEMANTIC_PATCH)
    if name == "acoustic_encoder.patch_embed.weight":
        return tensor.view(-1, 1, config.acoustic_mels, config.acoustic_patch)
    if name == "semantic_encoder.time_position":
        return tensor.t().contiguous()[None, :, None]
    if name == "semantic_encoder.frequency_position":
        return tensor.view(1, -1, 1, 1)
    return tensor


def to_published(state: Mapping[str, Tensor], config: LoSATokConfig) -> dict[str, Tensor]:
    """Our state dict by the published names, with the computed buffers."""
    result = {
        _rename(name, _TO_PUBLISHED): _reshape_to_published(name, t.detach(), config) for name, t in state.items()
    }
    return {**result, **{name: maker() for name, maker in _constants(config).items()}}


def from_published(state: Mapping[str, Tensor], config: LoSATokConfig) -> dict[str, Tensor]:
    """A published state dict by our names.

    Raises:
        CheckpointError: one of its windows or filter banks is not the one that ``config`` computes.
    """
    constants = _constants(config)
    result = {}
    for name, tensor in state.items():
        if name in constants:
            ours = constants[name]()
            if ours.shape != tensor.shape or not torch.allclose(ours, tensor.float(), atol=1e-2):
                raise CheckpointError(
                    f"the checkpoint's {name} {list(tensor.shape)} is not what the configuration computes, "
                    f"{list(ours.shape)}: its front end is another one; pass the configuration it was trained with"
                )
        elif not _IGNORED.match(name):
            renamed = _rename(name, _TO_OURS)
            result[renamed] = _reshape_to_ours(renamed, tensor)
    return result


def read(source: Source, config: LoSATokConfig, semantic_encoder: Source | None = None) -> dict[str, Tensor]:
    """The published checkpoint ``source`` by our names, with the semantic encoder of another source if one is given.

    Raises:
        CheckpointError: a file is missing or unreadable, or does not hold a state dict.
    """
    state = dict(_tensors(source))
    if semantic_encoder is not None:
        state = {name: t for name, t in state.items() if not name.startswith(SEMANTIC)}
        state.update(_semantic_names(semantic_encoder))
    return _complete(state, config)


def semantic_state(source: Source, config: LoSATokConfig) -> dict[str, Tensor]:
    """The weights of the semantic encoder in ``source``, by our names.

    Raises:
        CheckpointError: a file is missing or unreadable, or holds no semantic encoder.
    """
    return _complete(dict(_semantic_names(source)), config)


def describe(path: Path) -> dict[str, Any]:
    """What a published checkpoint holds, as far as its tensors tell.

    Args:
        path: a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file, or a folder of safetensors files.

    Returns:
        ``parts`` (such as ``decoder``), ``weights`` (their number), ``dtype``, and those fields of
        :class:`LoSATokConfig` that follow from the shapes.

    Raises:
        CheckpointError: it cannot be read, or no tensor has a published name.
    """
    found = dict(_tensors(path, "audio_encoder."))
    if not any(name.startswith((SEMANTIC, "dasheng_tokenizer.", "fc_mu.")) for name in found):
        found = dict(_semantic_names(found, str(path)))
    ours = {_rename(name, _TO_OURS): tensor for name, tensor in found.items() if not _IGNORED.match(name)}
    sizes = {
        field: ours[name].shape[0]
        for field, name in (
            ("embed_dim", "semantic_encoder.norm.weight"),
            ("bottleneck_dim", "bottleneck.down.fc1.weight"),
            ("latent_dim", "fc_mu.weight"),
            ("decoder_dim", "decoder.backbone.final_norm.weight"),
            ("decoder_hidden", "decoder.backbone.blocks.0.fc1.weight"),
        )
        if name in ours
    }
    for field, blocks in (("depth", "semantic_encoder.blocks."), ("decoder_depth", "decoder.backbone.blocks.")):
        numbers = {name.removeprefix(blocks).split(".")[0] for name in ours if name.startswith(blocks)}
        if numbers:
            sizes[field] = len(numbers)
    floats = [tensor for tensor in ours.values() if tensor.is_floating_point()]
    smallest = min({tensor.dtype for tensor in floats}, key=lambda dtype: dtype.itemsize)
    return {
        "parts": list(dict.fromkeys(name.split(".")[0] for name in ours)),
        "weights": sum(tensor.numel() for tensor in floats),
        "dtype": str(smallest).removeprefix("torch."),
        **sizes,
    }


def _complete(state: Mapping[str, Tensor], config: LoSATokConfig) -> dict[str, Tensor]:
    """``state`` by our names, with the tensors that some exports leave out or name differently."""
    state = {
        re.sub(r"^(semantic_encoder\.encoder\.init_bn\.)(?!1\.)", r"\g<1>1.", name): t for name, t in state.items()
    }
    result = from_published(state, config)
    # A counter of training steps, which some exports leave out; nothing is computed from it.
    result.setdefault("semantic_encoder.batch_norm.num_batches_tracked", torch.tensor(0))
    return result


def _semantic_names(source: Source, name_of_source: str = "semantic_encoder") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a semantic encoder by the published names, whatever prefix they come with.

    Raises:
        CheckpointError: there is no semantic encoder; ``name_of_source`` begins the message.
    """
    tensors = dict(_tensors(source, "audio_encoder."))
    for prefix in ("audio_encoder.", SEMANTIC, "encoder.", ""):
        found = {name: t for name, t in tensors.items() if name.startswith(prefix)}
        if prefix + "patch_embed.proj.weight" in found:
            return iter([(SEMANTIC + name.removeprefix(prefix), t) for name, t in found.items()])
    raise CheckpointError(
        f"{name_of_source} holds no semantic encoder: there is no tensor named patch_embed.proj.weight, alone or after "
        "audio_encoder., semantic_encoder.encoder. or encoder."
    )


def _tensors(source: Source, only: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of a state dict, a file, or a folder of shards (of a folder only some: :func:`_shards`)."""
    if isinstance(source, Mapping):
        yield from _state_dict(source, "the state dict").items()
        return
    path = Path(source)
    if path.is_dir():
        yield from _shards(path, only)
    elif path.suffix == ".safetensors":
        yield from read_safetensors(path).items()
    elif not path.is_file():
        raise CheckpointError(f"{path} does not exist; pass a .safetensors or .pth file in the published layout")
    else:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the pickle reader raises errors of many kinds for other files
            reason = str(error).split("\n", 1)[0]
            if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error):
                reason = "it holds more than tensors and plain values, which could run code"
            raise CheckpointError(
                f"{path} cannot be read as a file of weights ({reason}); "
                "copy it again, or save its state dict with torch.save or safetensors"
            ) from error
        yield from _state_dict(loaded, str(path)).items()


def _shards(folder: Path, only: str | None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder of safetensors files: those whose names begin with ``only``, or all where none does."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            where = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        else:
            where = {name: file for file in sorted(folder.glob("*.safetensors")) for name in _names(file)}
        wanted = [name for name in where if only is not None and name.startswith(only)] or list(where)
        if not wanted:
            raise CheckpointError(
                f"{folder} holds no .safetensors files; pass a file or the folder of a safetensors model"
            )
        for file in sorted({where[name] for name in wanted}):
            with safe_open(file, "pt") as shard:
                for name in wanted:
                    if where[name] == file:
                        yield name, shard.get_tensor(name)
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder} is not a whole safetensors model ({error}); copy it again") from error


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as shard:
        return list(shard.keys())


def _state_dict(loaded: Any, source: str) -> dict[str, Tensor]:
    """The mapping of names to tensors in ``loaded``, or in its entry ``state_dict`` or ``model``."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()) or not loaded:
        raise CheckpointError(f"{source} is not a state dict (names to tensors); save model.state_dict()")
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}
