"""Reads a part of a long recording without decoding the rest."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from losatok_ext.audio.files import audio_info, quietly
from losatok_ext.audio.reading import Content
from losatok_ext.audio.resample import resample
from losatok_ext.errors import AudioFileError

_MARGIN_SECONDS = 0.1  # read on each side and cut off again; the filter of the resampler is far shorter


def read_region(path: Path, start: int, samples: int, sample_rate: int, content: BinaryIO | None = None) -> Tensor:
    """Samples ``start`` to ``start + samples`` of an audio file, counted at ``sample_rate`` (Hz), as float32 mono [N].

    The samples are those that :func:`~losatok_ext.audio.files.read_audio` returns there: exactly at the file's own
    rate, to the accuracy of the resampler at other rates. N is smaller where the file ends earlier.

    Args:
        path: the file.
        start, samples: first sample and number of samples, at ``sample_rate``.
        sample_rate: Hz.
        content: the file's bytes as an open, seekable file; ``path`` then only names them.

    Raises:
        AudioFileError: the file cannot be read there, or holds NaN or infinite samples there.
        UserError: soundfile or soxr is not installed.
    """
    info = audio_info(path, content)  # raises an error of its own for each reason why the file cannot be opened
    import soundfile

    rate = info.sample_rate
    # Begin where a sample of the file and a sample of the result are at the same time.
    unit = math.gcd(rate, sample_rate)
    native_step, step = rate // unit, sample_rate // unit
    units = max(start // step - math.ceil(_MARGIN_SECONDS * unit), 0)
    seconds = (start + samples - units * step) / sample_rate
    wrapped = None if content is None else Content(content)
    if wrapped is not None:
        wrapped.seek(0)
    try:
        with quietly(info.format), soundfile.SoundFile(os.fspath(path) if wrapped is None else wrapped) as file:
            file.seek(units * native_step)
            block = file.read(math.ceil((seconds + _MARGIN_SECONDS) * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        if wrapped is not None:
            wrapped.check(path)
        raise AudioFileError(
            f"{path} cannot be decoded at {start / sample_rate:.2f} s ({error}); it is truncated or damaged"
        ) from error
    if wrapped is not None:
        wrapped.check(path)
    audio = torch.from_numpy(block[:, 0].copy() if block.shape[1] == 1 else block.mean(axis=1))
    audio = resample(audio, rate, sample_rate) if rate != sample_rate else audio
    audio = audio[start - units * step :][:samples]
    if len(audio) == 0:
        raise AudioFileError(
            f"{path} is truncated: it holds no audio at {start / sample_rate:.2f} s, though its header promises it"
        )
    if not torch.isfinite(audio).all():
        raise AudioFileError(
            f"{path} holds NaN or infinite samples after {start / sample_rate:.2f} s; repair or re-export it"
        )
    return audio
