"""A few seconds out of a long recording, without decoding the rest."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from losatok_ext.audio.files import audio_info
from losatok_ext.audio.resample import resample
from losatok_ext.errors import AudioFileError

_MARGIN_SECONDS = 0.1  # read on either side and cut off again: the resampler's filter is far shorter


def read_region(path: Path, start: int, samples: int, sample_rate: int, content: BinaryIO | None = None) -> Tensor:
    """Samples ``start`` to ``start + samples`` of an audio file, counted at ``sample_rate`` (Hz), as float32 mono [N].

    What :func:`~losatok_ext.audio.files.read_audio` would return there: exactly at the file's own rate, to resampler
    accuracy at others.
    N is smaller where the file ends earlier. ``content`` as there.

    Raises:
        AudioFileError: the file cannot be read there, or holds NaN or infinite samples there.
        UserError: soundfile or soxr is not installed.
    """
    info = audio_info(
        path, content
    )  # every reason why the file cannot be opened, and soundfile's absence, is told apart there
    import soundfile

    rate = info.sample_rate
    # Begin where a sample of the file and one of the result coincide.
    unit = math.gcd(rate, sample_rate)
    native_step, step = rate // unit, sample_rate // unit
    units = max(start // step - math.ceil(_MARGIN_SECONDS * unit), 0)
    seconds = (start + samples - units * step) / sample_rate
    if content is not None:
        content.seek(0)
    try:
        with soundfile.SoundFile(os.fspath(path) if content is None else content) as file:
            file.seek(units * native_step)
            block = file.read(math.ceil((seconds + _MARGIN_SECONDS) * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioFileError(
            f"{path} cannot be decoded at {start / sample_rate:.2f} s ({error}); it is truncated or damaged"
        ) from error
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
