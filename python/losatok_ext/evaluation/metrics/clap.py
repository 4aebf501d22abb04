"""CLAP embeddings of clips and of texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losatok_ext.audio.resample import resample
from losatok_ext.errors import UserError


class Clap:
    """A CLAP model for transformers, loaded from a folder; nothing is downloaded.

    Args:
        folder: with the model, its feature extractor and its tokenizer, as ``save_pretrained`` writes them.
        device: torch device that it runs on.

    Raises:
        UserError: transformers is not installed, or the folder holds no CLAP model.
    """

    def __init__(self, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> None:
        try:
            import transformers as module
        except ImportError as error:
            raise UserError(f"CLAP needs transformers ({error}); pip install 'losatok-ext[text]'") from error
        name = os.fspath(folder)
        transformers: Any = module
        options = {"local_files_only": True}
        try:
            self.extractor: Any = transformers.ClapFeatureExtractor.from_pretrained(name, **options)
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, **options)
            self.model: Any = transformers.ClapModel.from_pretrained(name, **options).to(device).eval()
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"no CLAP model can be loaded from {name} ({reason}); pass a folder that holds one, such as a copy of "
                "laion/clap-htsat-unfused, with its tokenizer and preprocessor_config.json"
            ) from error

    @torch.no_grad()
    def audio(self, audio: Tensor, sample_rate: int) -> Tensor:
        """The embedding [D] float32, of unit length, of a clip [N] at ``sample_rate`` (Hz).

        A clip longer than the model's input (10 s) is cut into parts of that length, and the mean of their embeddings
        is scaled to unit length. The model's own method takes a random part, so it would change from run to run.
        """
        rate, size = self.extractor.sampling_rate, int(self.extractor.nb_max_samples)
        samples = resample(audio.detach().float().cpu(), sample_rate, rate)
        parts = [part.numpy() for part in samples.split(size) if len(part) >= min(size // 10, len(samples))]
        batch = self.extractor(parts, sampling_rate=rate, return_tensors="pt").to(self.model.device)
        embedded = _pooled(self.model.get_audio_features(**batch))
        return F.normalize(embedded.float().cpu().mean(0), dim=0)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] float32, of unit length, of B texts."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        return F.normalize(_pooled(self.model.get_text_features(**batch)).float().cpu(), dim=1)


def _pooled(output: Any) -> Tensor:
    """The embedding, which transformers 4 returns as a tensor and transformers 5 inside an object."""
    return output if isinstance(output, Tensor) else output.pooler_output
