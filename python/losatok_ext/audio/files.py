"""Reading and writing audio files: any rate, any number of channels, as float32 mono tensors.

Files are read in blocks. Each block is mixed down and resampled before the next is read, so that an hour of 48 kHz
stereo needs no more memory than its 16 kHz mono result. Every file that cannot be used raises
:class:`~losatok_ext.errors.AudioFileError`, whose message names the file and the cure. How long a recording may be, and
whether damaged ones are used, :mod:`losatok_ext.audio.reading` says.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from losatok_ext.audio.containers import container_damage, kind_by_first_bytes
from losatok_ext.audio.pcm import PCM_16, sixteen_bits
from losatok_ext.audio.reading import Content, reading_options
from losatok_ext.audio.resample import RATES, check_rate, import_soxr
from losatok_ext.errors import AudioFileError, UserError
from losatok_ext.files import atomic_path
from losatok_ext.standard_error import silent_libraries

READABLE_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64")
"""Suffixes taken for audio when a folder is searched. A file named explicitly is read whatever its suffix."""

WRITABLE = {
    ".wav": ("WAV", PCM_16),
    ".flac": ("FLAC", PCM_16),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
"""Suffix -> (container, encoding) of :func:`write_audio`."""

_BLOCK = 1 << 16  # frames per read and write; Vorbis encoders overflow their stack on long ones
_BLOCK_SAMPLES = 1 << 22  # of all channels together: a file may have 1024
_MP3_SLACK = 2257  # frames: one MPEG frame (1152) and the decoder delay (1105), which not every encoder declares
_UNKNOWN_FRAMES = 1 << 62
_MAX_MP3_RATE, _MAX_OGG_RATE, _MAX_FLAC_RATE = 48_000, 192_000, 655_350  # Hz


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says.

    Attributes:
        path: the file.
        format: container, e.g. ``"WAV"``; ``encoding``: e.g. ``"PCM_16"``.
        sample_rate: Hz.
        channels: count.
        frames: samples per channel at ``sample_rate``; after :func:`read_audio_with_info` the number decoded.
        damage: what was found, against what the file promises, after :func:`read_audio_with_info` of a damaged file;
            None where nothing is missing.
    """

    path: Path
    format: str
    encoding: str
    sample_rate: int
    channels: int
    frames: int
    damage: str | None = None

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate


def import_soundfile() -> ModuleType:
    """The module ``soundfile``.

    Raises:
        UserError: it is not installed; the message names the cure.
    """
    try:
        import soundfile
    except (
        ImportError,
        OSError,
    ) as error:  # OSError: the wheel for this platform ships no libsndfile, and none is found
        raise UserError(
            f"reading and writing audio files needs soundfile ({error}); pip install 'losatok-ext[audio]'"
        ) from error
    return soundfile


@cache
def _sequential(soundfile: ModuleType) -> type:
    """``soundfile.SoundFile`` that reads straight on.

    The original seeks to where it already is after each block. In MP3 that drops the bit reservoir, and what follows
    decodes wrong.
    """

    class SequentialSoundFile(soundfile.SoundFile):  # type: ignore[name-defined]
        def seekable(self) -> bool:
            return False

    return SequentialSoundFile


def _native_name(path: Path) -> str | bytes:
    """The name as soundfile takes it: bytes, since a file name need not be text, but text on Windows, where it is."""
    return os.fspath(path) if os.name == "nt" else os.fsencode(path)


def _check_regular(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise AudioFileError(f"{path} does not exist; check the name") from None
    except OSError as error:
        raise AudioFileError(f"{path} cannot be read: {error.strerror or error}") from None
    if path.is_dir():
        raise AudioFileError(f"{path} is a folder, not an audio file")
    if not path.is_file():
        raise AudioFileError(f"{path} is not a regular file; copy its content to one first")
    if status.st_size == 0:
        raise AudioFileError(f"{path} is empty (0 bytes); copy or download it again")
    if not os.access(path, os.R_OK):
        raise AudioFileError(f"{path} cannot be read: permission denied")


def _open(path: Path, content: Content | None = None):
    """An open ``soundfile.SoundFile``; an error has a message of its own for each reason."""
    soundfile = import_soundfile()
    if content is None:
        _check_regular(path)
    kind = kind_by_first_bytes(path if content is None else content)
    if kind is None and path.suffix.lower() in (".mp3", ".raw"):
        # By these names alone libsndfile would take any bytes for audio.
        raise AudioFileError(f"{path} is not an audio file that libsndfile can read; convert it to WAV or FLAC first")
    if content is not None:
        content.seek(0)
    try:
        with quietly(kind):
            file = _sequential(soundfile)(_native_name(path) if content is None else content)
    except (soundfile.LibsndfileError, TypeError) as error:
        if content is not None:
            content.check(path)
        if kind is not None and kind != "MP3":
            raise AudioFileError(
                f"{path} starts like {kind} but holds no readable audio: "
                "it is truncated or damaged; copy or download it again"
            ) from error
        raise AudioFileError(
            f"{path} is not an audio file that libsndfile can read; convert it to WAV or FLAC first"
        ) from error
    if not RATES[0] <= file.samplerate <= RATES[1]:
        rate = file.samplerate
        file.close()
        raise AudioFileError(
            f"{path} declares a sample rate of {rate} Hz: its header is damaged; copy or convert it again"
        )
    return file


def quietly(kind: str | None) -> AbstractContextManager[None]:
    """A context to open or decode a recording of ``kind`` in: libsndfile's MP3 decoder writes to standard error."""
    return silent_libraries() if kind == "MP3" else nullcontext()


def _info(path: Path, file) -> AudioInfo:
    return AudioInfo(path, file.format, file.subtype, file.samplerate, file.channels, file.frames)


def audio_info(path: str | os.PathLike[str], content: BinaryIO | None = None) -> AudioInfo:
    """What the header of an audio file says, without decoding it. ``content`` as in :func:`read_audio`.

    Raises:
        AudioFileError: the file is missing, empty, or not audio.
        UserError: soundfile is not installed.
    """
    path = Path(path)
    with _open(path, None if content is None else Content(content)) as file:
        return _info(path, file)


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int = 16_000,
    content: BinaryIO | None = None,
    *,
    max_minutes: float | None = None,
    strict: bool | None = None,
) -> Tensor:
    """Read an audio file as float32 mono [N] at ``sample_rate`` (Hz).

    Integer encodings are scaled to [-1, 1); channels are averaged; other rates are converted by soxr (quality HQ). A
    silent file is valid. WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF and what else libsndfile reads.

    Args:
        path: the file.
        sample_rate: Hz of the result.
        content: the file's bytes as an open, seekable file, such as a part of a shard; ``path`` then only names them.
        max_minutes, strict: as in :class:`~losatok_ext.audio.reading.ReadingOptions`; None: as the process is set, at
            first 240 minutes and not strict.

    Raises:
        AudioFileError: the file is missing, empty, not audio, longer than ``max_minutes`` by its header or in truth,
            holds no samples, or holds NaN or infinite samples; with ``strict`` also when it is damaged.
        UserError: soundfile or soxr is not installed, or ``max_minutes`` is not a number above 0.
        ValueError: ``sample_rate`` is not a whole number from 1000 to 1000000.

    Warns:
        DamagedAudioWarning: the file holds less than it promises, since it is truncated or damaged, and ``strict`` is
            False. What could be decoded is returned. Where a part in the middle is lost, what follows comes earlier.
    """
    return read_audio_with_info(path, sample_rate, content, max_minutes=max_minutes, strict=strict)[0]


def read_audio_with_info(
    path: str | os.PathLike[str],
    sample_rate: int = 16_000,
    content: BinaryIO | None = None,
    *,
    max_minutes: float | None = None,
    strict: bool | None = None,
) -> tuple[Tensor, AudioInfo]:
    """The result of :func:`read_audio`, and an :class:`AudioInfo` with the number of frames that were decoded.

    Arguments, errors and warnings are those of :func:`read_audio`.
    """
    check_rate("sample_rate", sample_rate)
    options = reading_options(max_minutes, strict)
    path = Path(path)
    wrapped = None if content is None else Content(content)
    pieces: list[np.ndarray] = []
    decoded = 0
    with _open(path, wrapped) as file:
        info = _info(path, file)
        if info.frames < _UNKNOWN_FRAMES:
            options.check_length(path, info.seconds)
        stream = None
        if info.sample_rate != sample_rate:
            stream = import_soxr().ResampleStream(info.sample_rate, sample_rate, 1, dtype="float32", quality="HQ")
        size = max(1, min(_BLOCK, _BLOCK_SAMPLES // info.channels))
        last = stopped = False
        while not last:
            block, stopped = _decode(file, size)
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
            if not np.isfinite(mono).all():
                second = (decoded + int(np.argmin(np.isfinite(mono)))) / info.sample_rate
                raise AudioFileError(
                    f"{path} holds NaN or infinite samples (first at {second:.3f} s); repair or re-export it"
                )
            decoded += len(mono)
            options.check_length(path, decoded / info.sample_rate)  # a header may promise less than there is
            last = stopped or len(mono) < size
            pieces.append(stream.resample_chunk(mono, last=last) if stream is not None else mono)
    if wrapped is not None:
        wrapped.check(path)
    damage = _damage(info, decoded, stopped, wrapped)
    if decoded == 0 and damage is not None:
        raise AudioFileError(f"{path} is truncated or damaged: {damage}; copy or download it again")
    if decoded == 0:
        raise AudioFileError(f"{path} holds no samples; record or export it again, or leave it out")
    audio = torch.from_numpy(np.concatenate(pieces))
    if audio.numel() == 0:
        raise AudioFileError(f"{path} holds {decoded} samples, too few for one at {sample_rate} Hz; leave it out")
    if not torch.isfinite(audio).all():
        raise AudioFileError(f"{path} holds samples too large to resample in float32; re-export it within [-1, 1]")
    if damage is not None:
        options.tell_damage(path, damage)
    return audio, AudioInfo(path, info.format, info.encoding, info.sample_rate, info.channels, decoded, damage)


def _decode(file, frames: int) -> tuple[np.ndarray, bool]:
    """The next ``frames`` [n, channels] of an open file, fewer at its end, and whether the decoder stopped there at an
    error.

    soundfile does not say how many frames came before an error, so a NaN marks each one that did not.
    """
    buffer = np.full((frames, file.channels), np.nan, np.float32)
    try:
        with quietly(file.format):
            return file.read(out=buffer), False
    except import_soundfile().LibsndfileError:
        missing = np.isnan(buffer).all(axis=1)
        return buffer[: int(missing.argmax()) if missing.any() else frames], True


def _damage(info: AudioInfo, decoded: int, stopped: bool, content: Content | None) -> str | None:
    """What was found of a file against what it promises, in words; None where nothing is missing."""
    slack = _MP3_SLACK if info.format == "MP3" else 0
    problems = []
    if info.frames < _UNKNOWN_FRAMES and decoded + slack < info.frames:
        problems.append(f"its header promises {info.seconds:.2f} s")
    found = container_damage(info.path if content is None else content)
    if found is not None:
        problems.append(found)
    if stopped and not problems:
        problems.append("the decoder stopped at an error")
    if not problems:
        return None
    return f"{', '.join(problems)}, and {decoded / info.sample_rate:.2f} s could be decoded"


def write_audio(
    path: str | os.PathLike[str],
    audio: Tensor,
    sample_rate: int,
    before_rename: Callable[[Path], None] | None = None,
) -> None:
    """Write ``audio`` [N] or [channels, N] (floating point, [-1, 1]) to ``path`` at ``sample_rate`` (Hz), whole or not
    at all.

    The suffix chooses the format: .wav and .flac (16 bits; samples that were read from 16 bits are written unchanged),
    .ogg (Vorbis), .mp3. Samples beyond [-1, 1] are clipped. Parent folders are made. ``path`` is only replaced once the
    new file is on the disk and its header has been read back. ``before_rename`` is called then, with the temporary name
    of the complete file.

    Raises:
        AudioFileError: the suffix is none of these, the format does not take the rate, ``audio`` is empty or not
            finite, or the file cannot be written, for example because the disk is full.
        TypeError, ValueError: ``audio`` is not a floating-point tensor of one of those shapes.
        UserError: soundfile is not installed.
    """
    path = Path(path)
    soundfile = import_soundfile()
    container, encoding = check_writable(path, sample_rate)
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        kind = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
        raise TypeError(f"audio should be a floating-point torch.Tensor, got {kind}")
    if audio.dim() not in (1, 2):
        raise ValueError(f"audio should have shape [N] or [channels, N], got {list(audio.shape)}")
    if audio.numel() == 0:
        raise AudioFileError(f"{path} was not written: the audio holds no samples")
    samples = torch.atleast_2d(audio.detach()).t().to("cpu", torch.float32)
    if not torch.isfinite(samples).all():
        raise AudioFileError(
            f"{path} was not written: the audio holds NaN or infinite samples; look for them where it was made"
        )
    samples = (sixteen_bits(samples) if encoding == PCM_16 else samples.clamp(-1, 1)).contiguous().numpy()
    try:
        with atomic_path(path) as temporary:
            with temporary.open("wb+", buffering=0) as raw:
                output = _Output(raw)
                with soundfile.SoundFile(
                    output, "w", sample_rate, samples.shape[1], encoding, format=container
                ) as file:
                    for start in range(0, len(samples), _BLOCK):
                        output.check()
                        file.write(samples[start : start + _BLOCK])
                output.check()
                os.fsync(raw.fileno())
            _check_written(temporary, len(samples))
            if before_rename is not None:
                before_rename(temporary)
    except OSError as error:
        raise AudioFileError(f"{path} cannot be written: {error.strerror or error}") from error
    except soundfile.LibsndfileError as error:
        raise AudioFileError(f"{path} cannot be written: {error}") from error


class _Output:
    """The file that libsndfile writes through, which keeps the first error.

    Errors of the disk do not reach the caller of libsndfile: it drops those of its own writes while it closes a file.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first OSError of a write."""
        if self._error is not None:
            raise self._error

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while self._error is None and rest:
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            self._error = error
        return len(data)

    def read(self, count: int = -1) -> bytes:
        return self._raw.read(count) or b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()


def _check_written(path: Path, frames: int) -> None:
    """Raise OSError unless the header of a new file says that it holds ``frames``, and no bytes are missing."""
    try:
        info = audio_info(path)
    except AudioFileError as error:
        raise OSError(f"what was written cannot be read back ({error})") from error
    slack = _MP3_SLACK if info.format == "MP3" else 0
    if info.frames + slack < frames or container_damage(path) is not None:
        raise OSError(f"only {info.frames} of {frames} samples were written")


def flac_bytes(audio: Tensor, sample_rate: int) -> bytes:
    """``audio`` [N] (floating point) at ``sample_rate`` (Hz) as a 16-bit FLAC file, scaled as by :func:`write_audio`.

    Raises:
        UserError: soundfile is not installed.
    """
    file = io.BytesIO()
    import_soundfile().write(file, sixteen_bits(audio).cpu().numpy(), sample_rate, format="FLAC", subtype=PCM_16)
    return file.getvalue()


def check_writable(path: str | os.PathLike[str], sample_rate: int) -> tuple[str, str]:
    """The container and encoding that :func:`write_audio` would use for ``path`` at ``sample_rate`` (Hz).

    Raises:
        AudioFileError: the suffix is not one of :data:`WRITABLE`, or the format does not take the rate.
        ValueError: ``sample_rate`` is not a whole number from 1000 to 1000000.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise AudioFileError(f"{path} cannot be written: {suffix or 'no suffix'} is none of {', '.join(WRITABLE)}")
    highest = {".mp3": _MAX_MP3_RATE, ".ogg": _MAX_OGG_RATE, ".flac": _MAX_FLAC_RATE}.get(suffix)
    check_rate("sample_rate", sample_rate)
    if highest is not None and sample_rate > highest:
        raise AudioFileError(
            f"{path} cannot be written at {sample_rate} Hz: {suffix} takes rates up to {highest} Hz; use .wav"
        )
    return WRITABLE[suffix]
