"""Features of recordings, clip by clip: computed by a model, or read from files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from losatok_ext.audio.files import READABLE_SUFFIXES, read_audio
from losatok_ext.errors import AudioFileError, UserError
from losatok_ext.evaluation.metrics.baselines import BASELINES, LinearReduction
from losatok_ext.evaluation.tasks.measured import Progress, for_each, require_any
from losatok_ext.files import atomic_path
from losatok_ext.formats.latent_files import SUFFIX, load_latents
from losatok_ext.models import LoSATok
from losatok_ext.recordings.find import Failure
from losatok_ext.recordings.labelled import Item

LATENTS, GIVEN = "latents", "given"
FEATURES = (LATENTS, "semantic", "semantic_low", "acoustic", "acoustic_low", "unified", "unified_low")
"""Features that a model computes: ``latents`` are the means of the posterior, the others attributes of ``Latents``."""
GIVEN_SUFFIXES = (".npy", SUFFIX)
"""Files that hold features ([T, D], or one [D] for the clip) or latents; their only feature is called ``given``."""


@dataclass(frozen=True)
class Spec:
    """A feature: its ``base``, and the reduction applied to it (a name of ``BASELINES``, to ``dims``), or None."""

    base: str
    baseline: str | None = None
    dims: int = 0

    def __str__(self) -> str:
        return self.base if self.baseline is None else f"{self.base}+{self.baseline}:{self.dims}"

    def reduction(self) -> LinearReduction | None:
        """A new reduction, not fitted yet; None where the feature is not reduced."""
        return None if self.baseline is None else BASELINES[self.baseline](self.dims)


def parse_spec(text: str, given: bool = False) -> Spec:
    """A ``--feature`` option, such as ``semantic``, ``acoustic+merge:16`` or ``pca:64``, as a :class:`Spec`.

    Args:
        text: a feature, a feature with a reduction, or a reduction alone, which reduces ``semantic``.
        given: the features are read from files: the only one is ``given``, and a reduction alone reduces it.

    Raises:
        UserError: it is none of these.
    """
    base, plus, reduction = text.rpartition("+")
    kind, colon, dims = reduction.partition(":")
    known = (GIVEN,) if given else FEATURES
    if not colon and not plus and text in known:
        return Spec(text)
    base = base if plus else known[0] if given else "semantic"
    if base not in known or kind not in BASELINES or not dims.isdecimal() or int(dims) < 1:
        reduced = " or ".join(f"{known[-1]}+{name}:64" for name in BASELINES)
        raise UserError(
            f"--feature is {text!r}; it takes {', '.join(known)}, or one of them reduced: {reduced} "
            f"(pca:64 alone reduces {GIVEN if given else 'semantic'})"
        )
    return Spec(base, kind, int(dims))


@dataclass
class FeatureSet:
    """Features of clips, on disk; see :func:`extract`.

    Attributes:
        items: clips that have features.
        frame_rate: frames per second; None where the files do not tell.
        failures: clips without features.
    """

    items: list[Item] = field(default_factory=list)
    frame_rate: float | None = None
    failures: list[Failure] = field(default_factory=list)
    _places: list[Path] = field(default_factory=list)

    def load(self, name: str) -> list[Tensor]:
        """``name`` of each clip: [T, D] float32."""
        return [self.load_one(index, name) for index in range(len(self.items))]

    def load_one(self, index: int, name: str) -> Tensor:
        """``name`` of clip ``index``: [T, D] float32."""
        if name == GIVEN:
            return _given(self._places[index])[0]
        return load_file(self._places[index])[name]


def holds_features(items: Sequence[Item]) -> bool:
    """Whether the items are files of features rather than recordings.

    Raises:
        UserError: both kinds are among them.
    """
    given = [item.path.suffix.lower() in GIVEN_SUFFIXES for item in items]
    if any(given) and not all(given):
        first, other = (items[given.index(kind)].path for kind in (True, False))
        raise UserError(f"{first} holds features and {other} is a recording; give one kind at a time")
    return any(given)


SUFFIXES = (*READABLE_SUFFIXES, *GIVEN_SUFFIXES)


def extract(
    model: LoSATok | None,
    items: Sequence[Item],
    names: Sequence[str],
    folder: str | os.PathLike[str],
    progress: Progress | None = None,
    debug: bool = False,
) -> FeatureSet:
    """Compute features of each clip and keep them in ``folder``, so that the same call continues after an interruption.

    A file is named by a hash of the model, the recording's path, its size and its time of change, so features of
    another model or of an older recording are never used.

    Args:
        model: in eval mode; None for files that hold features.
        items: recordings, or files of features (``names`` is ``("given",)`` then).
        names: of :data:`FEATURES`.
        folder: for the files; made if needed.
        progress: called after each item.
        debug: raise the first error instead of collecting it.

    Raises:
        UserError: no clip has features, or they cannot be written.
        BackendUnavailableError: an op cannot run here.
    """
    found = FeatureSet(frame_rate=None if model is None else float(model.frame_rate))
    widths: dict[str, int] = {}

    def work(item: Item) -> None:
        if model is None:
            values, rate = _given(item.path)
            place = item.path
            _check_width(widths, {GIVEN: values}, place)
            if found.items and rate != found.frame_rate:
                raise UserError(
                    f"{place} has frames at {_hertz(rate)} and those before it at {_hertz(found.frame_rate)}"
                )
            found.frame_rate = rate
        else:
            place = Path(folder) / f"{_digest(model, item)}.safetensors"
            _check_width(widths, _of_model(model, item, names, place), item.path)
        found.items.append(item)
        found._places.append(place)

    found.failures = for_each(items, work, progress, debug, fatal=(_DiskError,))
    require_any(len(found.items), "no clip has features", found.failures)
    return found


class _DiskError(UserError):
    """Features cannot be written, so there is no use in computing more."""


def _digest(model: LoSATok, item: Item) -> str:
    text = f"{model.fingerprint()}\n{item.path.resolve()}\n{item.key()}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _of_model(model: LoSATok, item: Item, names: Sequence[str], place: Path) -> dict[str, Tensor]:
    """The features of a recording: read from ``place``, or computed and written there."""
    kept: dict[str, Tensor] = {}
    if place.exists():
        try:
            kept = load_file(place)
        except (OSError, SafetensorError):
            kept = {}  # an incomplete file, for example after a full disk: computed again and replaced
    if all(name in kept for name in names):
        return {name: kept[name] for name in names}
    audio = read_audio(item.path, model.sample_rate)
    latents = model.encode(audio[None], model.sample_rate, features=any(name != LATENTS for name in names))
    count = int(latents.lengths[0])
    if not count:
        raise AudioFileError(f"{item.path} is too short for one token; leave it out")
    fresh = {name: getattr(latents, "mu" if name == LATENTS else name)[0, :count].float().cpu() for name in names}
    values = {name: value.contiguous() for name, value in {**kept, **fresh}.items()}
    try:
        with atomic_path(place) as temporary:
            save_file(values, temporary)
    except (OSError, SafetensorError) as error:
        raise _DiskError(f"{place} cannot be written: {error}") from error
    return fresh


def _given(path: Path) -> tuple[Tensor, float | None]:
    """Features [T, D] float32 of a file, and their frame rate in Hz (None: not known)."""
    if path.suffix.lower() == SUFFIX:
        latents = load_latents(path)
        if latents.mu is None:
            raise UserError(f"{path} holds codes and no latents; encode it with --store float32")
        return latents.mu, latents.header.frame_rate
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a NumPy array: {error}") from error
    if values.ndim not in (1, 2) or values.dtype.kind not in "fiu" or not values.size:
        raise UserError(
            f"{path} should hold features [T, D] or [D] in numbers, got {values.dtype} {list(values.shape)}"
        )
    frames = torch.from_numpy(np.atleast_2d(values).astype(np.float32))
    if not torch.isfinite(frames).all():
        raise UserError(f"{path} holds NaN or infinite features; compute them again")
    return frames, None


def _hertz(rate: float | None) -> str:
    return "an unknown rate" if rate is None else f"{rate:g} Hz"


def _check_width(widths: dict[str, int], values: dict[str, Tensor], path: Path) -> None:
    for name, frames in values.items():
        if frames.shape[1] != widths.setdefault(name, frames.shape[1]):
            raise UserError(
                f"{path} has features of {frames.shape[1]} dimensions and those before it {widths[name]}; "
                "give features of one kind"
            )
