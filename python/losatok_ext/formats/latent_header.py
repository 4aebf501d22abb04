"""A latent file in memory: the latents of one recording, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LatentHeader:
    """The description of the latents in a latent file.

    Attributes:
        fingerprint: of the model that encoded it, with its quantizer (:meth:`LoSATok.fingerprint`).
        frame_rate: tokens per second (Hz).
        samples_per_token: samples at ``sample_rate``.
        sample_rate: of the model, Hz.
        tokens: T.
        latent_dim: d.
        samples: length of the recording at ``sample_rate``; decoding returns exactly as many samples.
        source_name: file name of the recording, without folders.
        source_rate: its sample rate, Hz.
        source_samples: its length in samples per channel at ``source_rate``.
        quantizer: 16 hex digits that name the model's quantizer (:meth:`LoSATok.quantizer_fingerprint`), or None.
        quantizer_name: its kind and sizes, such as ``"rvq 8x1024"``, or None.
        code_sizes: number of possible codes at each of the Q positions of a token; empty for a model without quantizer.
        dims: number of the d dimensions that were kept, for a model with nested latents; the rest is zero and not
            stored. None: all.
        source_digest: 32 hex digits that name the content of the recording's file (:func:`losatok_ext.files.digest`);
            None where it is not known.
        settings: what else the latents depend on, such as ``"dtype=float32, logvar=False"``; None where it is not
            known.
    """

    fingerprint: str
    frame_rate: float
    samples_per_token: int
    sample_rate: int
    tokens: int
    latent_dim: int
    samples: int
    source_name: str
    source_rate: int
    source_samples: int
    quantizer: str | None = None
    quantizer_name: str | None = None
    code_sizes: tuple[int, ...] = ()
    dims: int | None = None
    source_digest: str | None = None
    settings: str | None = None

    @property
    def stored_dims(self) -> int:
        """Number of dimensions that are stored of each token."""
        return self.latent_dim if self.dims is None else self.dims

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.samples / self.sample_rate

    @property
    def model_name(self) -> str:
        """The model and its quantizer, for messages."""
        quantizer = "" if self.quantizer is None else f" with the quantizer {self.quantizer_name} ({self.quantizer})"
        return f"model {self.fingerprint}{quantizer}"


@dataclass(frozen=True)
class LatentFile:
    """A latent file in memory, on the CPU.

    Attributes:
        header: the description.
        mu: [T, d] float32, mean of the posterior, zero from ``dims`` on; None where only codes were stored.
        logvar: [T, d] float32, log variance of the posterior, zero from ``dims`` on; or None.
        codes: [T, Q] int64 codes of the model's quantizer (Q = 1 for one code per token), or None.
        storage: how the file is stored, or will be; one of ``latent_storage.STORAGES``.
    """

    header: LatentHeader
    mu: Tensor | None
    logvar: Tensor | None = None
    codes: Tensor | None = None
    storage: str = "float32"
