"""Text encoders: they map a prompt to the features that a generator attends to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losatok_ext.errors import UserError
from losatok_ext.masks import keep_valid
from losatok_ext.nn.dit_block import DiTBlock, DiTBlockConfig
from losatok_ext.nn.rotary import RotaryEmbedding


def check_texts(texts: Sequence[str]) -> list[str]:
    """``texts`` as a list.

    Raises:
        TypeError: ``texts`` is one text instead of a list, or an element is not a text.
        UserError: a text holds half of a surrogate pair, which is no character.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts should be a list of texts, one for each item, got one text: pass [{texts[:20]!r}]")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts should hold texts (str), got {type(text).__name__}; an item without text is ''")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text that begins {text[:30]!r} holds {text[error.start]!r}, which is no character; type it anew"
            ) from None
    return texts


class ByteTextEncoder(nn.Module):
    """A small transformer over the UTF-8 bytes of a text: any language, no vocabulary file, trained with the generator.

    Args:
        dim: width of its features, a multiple of 32.
        layers: transformer blocks.
        max_bytes: longest text.
    """

    def __init__(self, dim: int, layers: int, max_bytes: int = 1024) -> None:
        super().__init__()
        self.dim, self.max_bytes = dim, max_bytes
        size = 64 if dim % 64 == 0 else 32
        config = DiTBlockConfig(
            width=dim, heads=dim // size, activation="gelu", norm_weights="affine", rotary_dim=size, modulation="none"
        )
        self.embedding = nn.Embedding(256, dim)
        self.rotary = RotaryEmbedding(size)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The bytes of ``texts``.

        Returns:
            (bytes [B, S] int64, lengths [B] int64), both on the CPU; S is at least 1. Zeros past a length.

        Raises:
            TypeError: ``texts`` is not a list of texts.
            UserError: a text is longer than ``max_bytes``.
        """
        encoded = [text.encode() for text in check_texts(texts)]
        for text in encoded:
            if len(text) > self.max_bytes:
                raise UserError(
                    f"the text that begins {text[:30].decode(errors='ignore')!r} has {len(text)} bytes, and the model "
                    f"takes {self.max_bytes}; shorten it"
                )
        tokens = torch.zeros(len(encoded), max(map(len, encoded), default=0) or 1, dtype=torch.int64)
        for row, text in zip(tokens, encoded, strict=True):
            row[: len(text)] = torch.tensor(list(text), dtype=torch.int64)
        return tokens, torch.tensor([len(text) for text in encoded], dtype=torch.int64)

    def encode(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Bytes [B, S] int64 and lengths [B] int64 to features [B, S, dim], zero past each length."""
        x = self.embedding(tokens)
        rope = self.rotary(tokens.shape[1])
        for block in self.blocks:
            x = block(x, lengths=lengths, rope=rope)
        return keep_valid(self.norm(x), lengths)

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts to (features [B, S, dim], lengths [B] int64), on the encoder's device.

        Raises:
            TypeError: ``texts`` is not a list of texts.
            UserError: a text is longer than ``max_bytes``.
        """
        tokens, lengths = (x.to(self.embedding.weight.device) for x in self.tokens(texts))
        return self.encode(tokens, lengths), lengths


class HuggingFaceTextEncoder(nn.Module):
    """A pretrained Hugging Face text encoder, frozen: T5, BERT, CLIP's text part, and whatever else AutoModel loads.

    Of an encoder-decoder model (T5) only the encoder is kept. Needs the extra ``text``.

    Args:
        name_or_path: a local folder, or a name on the Hugging Face hub, which is fetched once and cached there.
        max_tokens: longest text; None: the maximum of the tokenizer, or 512 if it has none.

    Raises:
        UserError: transformers is not installed, or the encoder cannot be loaded.
    """

    def __init__(self, name_or_path: str | os.PathLike[str], max_tokens: int | None = None) -> None:
        super().__init__()
        name = os.fspath(name_or_path)
        try:
            import transformers
        except ImportError:
            raise UserError(
                "Hugging Face text encoders need transformers, which is not installed; pip install 'losatok-ext[text]'"
            ) from None
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
            config: Any = transformers.AutoConfig.from_pretrained(name)
            model: Any = _load(transformers, name, config)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the text encoder {name!r} cannot be loaded ({reason}); pass the folder of a saved encoder and its "
                "tokenizer, or a name on the hub where there is a network"
            ) from error
        self.name = name
        self.model: Any = model
        self.dim = int(model.config.hidden_size)
        known = self.tokenizer.model_max_length
        self.max_tokens = max_tokens or (known if known < 10**6 else 512)  # tokenizers without a maximum give 1e30
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> HuggingFaceTextEncoder:
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts to (features [B, S, dim], lengths [B] int64), on the encoder's device; zeros past each length.

        An empty text has length 0, although tokenizers add an end token to it.

        Raises:
            TypeError: ``texts`` is not a list of texts.
            UserError: a text has more than ``max_tokens`` tokens.
        """
        texts = check_texts(texts)
        device = next(self.model.parameters()).device
        if not texts:
            return torch.zeros(0, 1, self.dim, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        # Padding on the right, whatever the tokenizer's default is, so that lengths say which tokens are valid.
        batch = self.tokenizer(texts, padding=True, padding_side="right", truncation=False, return_tensors="pt")
        mask = batch["attention_mask"]
        lengths = mask.sum(1)
        for text, length in zip(texts, lengths.tolist(), strict=True):
            if length > self.max_tokens:
                raise UserError(
                    f"the text that begins {text[:30]!r} has {length} tokens, and {self.name} takes "
                    f"{self.max_tokens}; shorten it"
                )
        tokens, mask = batch["input_ids"].to(device), mask.to(device)
        features = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        lengths = torch.tensor([n if text else 0 for n, text in zip(lengths.tolist(), texts, strict=True)])
        lengths = lengths.to(device)
        return keep_valid(features, lengths), lengths


def _load(transformers: Any, name: str, config: Any) -> Any:
    """The model ``name``; only the text part of CLIP, and only the encoder of an encoder-decoder."""
    if type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        return transformers.AutoModelForTextEncoding.from_pretrained(name)
    if config.model_type == "clip":
        return transformers.CLIPTextModel.from_pretrained(name)
    model = transformers.AutoModel.from_pretrained(name)
    return model.get_encoder() if config.is_encoder_decoder else model
