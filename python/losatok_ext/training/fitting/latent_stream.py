"""The frames of any number of latent files, one file in memory at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from losatok_ext.errors import LatentFileError, UserError
from losatok_ext.formats.latent_files import load_latents, read_header, read_storage
from losatok_ext.recordings.find import Failure

FRAMES_AT_ONCE = 8192
"""Frames of a batch: what is computed from one takes a few megabytes."""


class LatentStream:
    """The means of a model's latents in ``paths``; they can be read any number of times.

    All headers are read at the start. A file that cannot be used is noted in :attr:`failures` and left out, and so is
    one whose content is found damaged later.

    Args:
        paths: latent files.
        fingerprint: of the model that encoded them.
        dim: d, the dimensions of its latents.

    Raises:
        UserError: none of them can be used; the message gives the first reason.
    """

    def __init__(self, paths: Sequence[Path], fingerprint: str, dim: int) -> None:
        self.fingerprint, self.dim = fingerprint, dim
        self.failures: list[Failure] = []
        self._tokens: dict[Path, int] = {}
        for path in paths:
            try:
                header = read_header(path)
                if header.fingerprint != fingerprint:
                    raise LatentFileError(
                        f"{path} was encoded by {header.model_name}, and this is model {fingerprint}; "
                        "encode the recording with this model"
                    )
                if read_storage(path) == "codes":
                    raise LatentFileError(f"{path} holds codes; encode the recording with --store float32 or float16")
                self._tokens[path] = header.tokens
            except LatentFileError as error:
                self.failures.append(Failure(path, str(error)))
        self.check()

    @property
    def files(self) -> int:
        """Files that can be used."""
        return len(self._tokens)

    @property
    def frames(self) -> int:
        """Frames in them."""
        return sum(self._tokens.values())

    def check(self) -> None:
        """Raise UserError where no file can be used."""
        if not self._tokens:
            reason = f"; the first: {self.failures[0].message}" if self.failures else ""
            raise UserError(f"there are no latents to fit a quantizer to{reason}")

    def batches(self, seed: int, on_frames: Callable[[int], None] | None = None) -> Iterator[Tensor]:
        """Batches of up to 8192 frames, [n, d] float32 on the CPU; files in an order that ``seed`` shuffles.

        Args:
            seed: of the order.
            on_frames: called with the number of frames of each batch once it was used.
        """
        order = sorted(self._tokens)
        random.Random(seed).shuffle(order)
        for path in order:
            try:
                mu = load_latents(path, self.fingerprint).mu
                if mu is None or mu.shape[1] != self.dim:
                    raise LatentFileError(f"{path} does not hold latents of {self.dim} dimensions; encode it again")
            except LatentFileError as error:
                self.failures.append(Failure(path, str(error)))
                del self._tokens[path]
                continue
            for batch in mu.split(FRAMES_AT_ONCE):
                yield batch
                if on_frames is not None:
                    on_frames(len(batch))
        self.check()

    def sample(self, size: int, seed: int, on_frames: Callable[[int], None] | None = None) -> Tensor:
        """Frames drawn evenly from all, each at most once: [min(size, frames), d] float32.

        A reservoir (Vitter 1985, algorithm R): its memory does not depend on how many frames there are.

        Args:
            size: how many.
            seed: of the order and the choice.
            on_frames: as in :meth:`batches`.
        """
        generator = np.random.default_rng(seed)
        kept = np.empty((min(size, self.frames), self.dim), dtype=np.float32)
        seen = 0
        for batch in self.batches(seed, on_frames):
            rows = batch.numpy()
            fresh = min(max(len(kept) - seen, 0), len(rows))
            kept[seen : seen + fresh] = rows[:fresh]
            number = np.arange(seen + fresh, seen + len(rows))
            place = (generator.random(len(number)) * (number + 1)).astype(np.int64)
            chosen = place < len(kept)
            kept[place[chosen]] = rows[fresh:][chosen]  # of two for one place the later stays, as one by one
            seen += len(rows)
        return torch.from_numpy(kept[: min(seen, len(kept))])
