"""Any audio encoder of Hugging Face transformers as the semantic encoder: WavLM, HuBERT, wav2vec 2.0, Whisper, ..."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from losatok_ext.errors import CheckpointError, UserError
from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH, LoSATokConfig

SAMPLE_RATE, HOP = 16000, 160
CHUNK_SECONDS = 30.0
"""Longer clips are encoded in pieces of so many seconds, each alone: what Whisper takes at once."""


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"this semantic encoder needs transformers ({error}); pip install 'losatok-ext[text]'"
        ) from None
    return transformers


def describe(source: str | os.PathLike[str], layer: int | None = None) -> dict[str, Any]:
    """What ``LoSATokConfig.semantic`` holds for the encoder of a local folder or a name on the Hugging Face hub.

    Args:
        source: folder that ``save_pretrained`` of transformers wrote, or a name such as ``microsoft/wavlm-base-plus``.
        layer: which hidden states are the features: 0 are the inputs of the first block, 1 what it gives, and so on;
            negative counts from the last; None takes what the model gives at its end.

    Raises:
        UserError: transformers is not installed, or there is no such layer.
        CheckpointError: the folder cannot be read, or holds no audio encoder.
    """
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(
            f"{source}: transformers finds no audio encoder there ({reason}); pass the folder of a model with its "
            "config.json and preprocessor_config.json"
        ) from None
    if extractor.sampling_rate != SAMPLE_RATE:
        raise CheckpointError(
            f"{source} works at {extractor.sampling_rate} Hz; a semantic encoder needs one of {SAMPLE_RATE} Hz"
        )
    depth = _depth(config)
    if layer is not None and depth is not None and not -depth - 1 <= layer <= depth:
        raise UserError(f"layer should lie within {-depth - 1}..{depth} for {source}, got {layer}")
    # Where it lay and who wrote it is nothing that the encoder is made of.
    architecture = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    return {"architecture": architecture, "extractor": extractor.to_dict(), "layer": layer}


def _depth(config: Any) -> int | None:
    for name in ("encoder_layers", "num_hidden_layers"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None


def width(semantic: dict[str, Any]) -> int:
    """D of the encoder that ``semantic`` describes."""
    architecture = semantic["architecture"]
    return int(architecture.get("d_model") or architecture["hidden_size"])


class HuggingFaceEncoder(nn.Module):
    """16 kHz audio to semantic features at 25 Hz by an encoder of transformers. Frozen: it stays in eval mode.

    Each clip is encoded alone, in pieces of 30 s, so that its features do not depend on its neighbours. The features of
    a token are read between the encoder's frames by linear interpolation at the token's centre.

    Args:
        config: its ``semantic`` is what :func:`describe` gave. The weights are random until a checkpoint's are loaded.
    """

    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        transformers = _transformers()
        assert config.semantic is not None
        architecture, extractor = dict(config.semantic["architecture"]), dict(config.semantic["extractor"])
        self.layer: int | None = config.semantic["layer"]
        self.dim = config.embed_dim
        ours = transformers.AutoConfig.for_model(**architecture)
        # On the CPU in any case: such models hold buffers that no checkpoint would fill.
        with torch.device("cpu"):
            self.encoder = _encoder_of(transformers.AutoModel.from_config(ours))
        self.extractor = getattr(transformers, extractor["feature_extractor_type"]).from_dict(extractor)
        kernels, strides = architecture.get("conv_kernel"), architecture.get("conv_stride")
        self._frames_of_samples = _convolution(kernels, strides) if kernels and strides else None
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> HuggingFaceEncoder:
        """Stays in eval mode: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, audio: Tensor, lengths: Tensor, project: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Features of each clip as if it were alone.

        Args:
            audio: [B, N]; what lies past a length is not read.
            lengths: [B] int64 samples. They are looked at on the CPU.
            project: applied to the features [n, D] of each piece; what it returns is kept instead of them.

        Returns:
            (features [B, T, D], token lengths [B] int64 on the device of ``audio``); zeros past a clip's tokens.
        """
        counts = [(n // HOP + 1) // SEMANTIC_PATCH if n > 0 else 0 for n in lengths.tolist()]
        longest = (audio.shape[1] // HOP + 1) // SEMANTIC_PATCH if audio.shape[1] else 0
        piece = round(CHUNK_SECONDS * SAMPLE_RATE) // (HOP * SEMANTIC_PATCH)
        rows = []
        for clip, tokens, samples in zip(audio, counts, lengths.tolist(), strict=True):
            parts = []
            for start in range(0, tokens, piece):
                size = min(piece, tokens - start)
                first = start * HOP * SEMANTIC_PATCH
                last = min(first + size * HOP * SEMANTIC_PATCH, samples)
                parts.append(self._piece(clip[first:last].float(), size))
            features = torch.cat(parts) if parts else self._nothing(audio.device)
            features = features if project is None else project(features)
            rows.append(torch.nn.functional.pad(features, (0, 0, 0, longest - tokens)))
        result = torch.stack(rows) if rows else self._nothing(audio.device)[None].expand(0, longest, -1)
        return result, torch.tensor(counts, dtype=torch.int64, device=audio.device)

    def _nothing(self, device: torch.device) -> Tensor:
        return torch.zeros(0, self.dim, device=device)

    def _piece(self, clip: Tensor, tokens: int) -> Tensor:
        """Features [tokens, D] of a piece [n] of a clip; a last token that is not whole is continued with zeros."""
        clip = torch.nn.functional.pad(clip, (0, tokens * HOP * SEMANTIC_PATCH - len(clip)))
        inputs = self.extractor(clip.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        values = inputs[self.encoder.main_input_name]
        weight = next(self.encoder.parameters())
        output = self.encoder(values.to(weight.device, weight.dtype), output_hidden_states=self.layer is not None)
        frames = (output.last_hidden_state if self.layer is None else output.hidden_states[self.layer])[0].float()
        centres = (torch.arange(tokens, device=frames.device, dtype=torch.float64) + 0.5) * HOP * SEMANTIC_PATCH
        if self._frames_of_samples is None:  # frames spread evenly over what the extractor made of the piece
            samples = self._extracted_samples(values, len(clip))
            position = centres * (len(frames) / samples) - 0.5
        else:
            stride, offset = self._frames_of_samples
            position = (centres - offset) / stride
        position = position.clamp(0, len(frames) - 1)
        low = position.long()
        weights = (position - low)[:, None].to(frames.dtype)
        return torch.lerp(frames[low], frames[(low + 1).clamp(max=len(frames) - 1)], weights)

    def _extracted_samples(self, values: Tensor, samples: int) -> float:
        """How many samples the extractor's frames span: it may have padded the piece."""
        hop = getattr(self.extractor, "hop_length", None)
        return float(values.shape[-1] * hop) if hop and values.dim() == 3 else float(samples)


def _encoder_of(model: Any) -> Any:
    """The encoder of a model that has a decoder too, else the model."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _convolution(kernels: list[int], strides: list[int]) -> tuple[int, float]:
    """(samples between frames, sample at the centre of frame 0) of a stack of unpadded convolutions."""
    stride, field = 1, 1
    for kernel, step in zip(kernels, strides, strict=True):
        field += (kernel - 1) * stride
        stride *= step
    return stride, field / 2


def pretrained_state(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights of the encoder in a local folder or on the hub, by the names of :class:`HuggingFaceEncoder`.

    Raises:
        CheckpointError: they cannot be read.
    """
    transformers = _transformers()
    try:
        model = transformers.AutoModel.from_pretrained(source).float()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: the weights cannot be read ({str(error).splitlines()[0]})") from None
    return {f"encoder.{name}": value for name, value in _encoder_of(model).state_dict().items()}
