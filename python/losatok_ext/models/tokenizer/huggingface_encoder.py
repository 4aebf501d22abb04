"""Any audio encoder of Hugging Face transformers as the semantic encoder: WavLM, HuBERT, wav2vec 2.0, Whisper, ..."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from losatok_ext.errors import CheckpointError, UserError
from losatok_ext.models.tokenizer.chunked_encoder import Chunk, ChunkedEncoder
from losatok_ext.models.tokenizer.config import SEMANTIC_PATCH, LoSATokConfig

SAMPLE_RATE, HOP = 16000, 160
CHUNK_SECONDS = 30.0
"""Seconds of a chunk: as much as Whisper takes at once."""


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"this semantic encoder needs transformers ({error}); pip install 'losatok-ext[text]'"
        ) from None
    return transformers


def describe(source: str | os.PathLike[str], layer: int | None = None) -> dict[str, Any]:
    """The entry ``LoSATokConfig.semantic`` for an encoder in a local folder or on the Hugging Face hub.

    Args:
        source: folder that ``save_pretrained`` of transformers wrote, or a name such as ``microsoft/wavlm-base-plus``.
        layer: which hidden states are the features: 0 are the inputs of the first block, 1 its outputs, and so on;
            negative numbers count from the last. None: the final output of the model.

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
    # Where the model was stored, and by which version, does not belong to its architecture.
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


class HuggingFaceEncoder(ChunkedEncoder):
    """16 kHz audio to semantic features at 25 Hz by an encoder of transformers. Frozen: it stays in eval mode.

    Each clip is encoded alone, in chunks of 30 s, so that its features do not depend on the other clips of a batch. The
    features of a token are interpolated linearly between the encoder's frames, at the token's centre.

    Args:
        config: its ``semantic`` is what :func:`describe` gave. The weights are random until a checkpoint is loaded.
    """

    hop = HOP

    def __init__(self, config: LoSATokConfig) -> None:
        super().__init__()
        transformers = _transformers()
        assert config.semantic is not None
        architecture, extractor = dict(config.semantic["architecture"]), dict(config.semantic["extractor"])
        self.layer: int | None = config.semantic["layer"]
        self.dim = config.embed_dim
        ours = transformers.AutoConfig.for_model(**architecture)
        # Always on the CPU: such models compute buffers when they are made, which no checkpoint holds.
        with torch.device("cpu"):
            self.encoder = _encoder_of(transformers.AutoModel.from_config(ours))
        self.extractor = getattr(transformers, extractor["feature_extractor_type"]).from_dict(extractor)
        kernels, strides = architecture.get("conv_kernel"), architecture.get("conv_stride")
        self._frames_of_samples = _convolution(kernels, strides) if kernels and strides else None
        self.requires_grad_(False)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the features: float32, whatever the weights are."""
        return torch.float32

    @torch.no_grad()
    def chunks(self, audio: Tensor, lengths: Tensor) -> Iterator[Chunk]:
        """See :meth:`ChunkedEncoder.chunks`; one clip at a time. The lengths are read on the CPU."""
        counts, samples = self.token_counts(lengths).tolist(), lengths.tolist()
        token, longest = HOP * SEMANTIC_PATCH, round(CHUNK_SECONDS * SAMPLE_RATE) // (HOP * SEMANTIC_PATCH)
        for number, clip in enumerate(audio):
            index = torch.tensor([number], device=audio.device)
            for start in range(0, counts[number], longest):
                size = min(longest, counts[number] - start)
                piece = clip[start * token : min((start + size) * token, samples[number])]
                yield Chunk(index, start, self._piece(piece.float(), size)[None], None)

    def _piece(self, clip: Tensor, tokens: int) -> Tensor:
        """Features [tokens, D] of a piece [n] of a clip; zeros are added to an incomplete last token."""
        clip = torch.nn.functional.pad(clip, (0, tokens * HOP * SEMANTIC_PATCH - len(clip)))
        inputs = self.extractor(clip.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        values = inputs[self.encoder.main_input_name]
        weight = next(self.encoder.parameters())
        output = self.encoder(values.to(weight.device, weight.dtype), output_hidden_states=self.layer is not None)
        frames = (output.last_hidden_state if self.layer is None else output.hidden_states[self.layer])[0].float()
        centres = (torch.arange(tokens, device=frames.device, dtype=torch.float64) + 0.5) * HOP * SEMANTIC_PATCH
        if self._frames_of_samples is None:  # the frames are spread evenly over the samples that the extractor covered
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
        """Samples that the extractor's frames cover: it may have padded the piece."""
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
