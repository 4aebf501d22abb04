"""How recordings are read: how long they may be, and whether damaged ones are used.

There is one setting for the process, which holds for every recording that any thread reads. :func:`reading` changes it
for a while; the options ``--max-minutes`` and ``--strict`` of the command line do so.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from losatok_ext.errors import AudioFileError, DamagedAudioWarning, UserError

MAX_MINUTES = 240.0
"""The longest recording that is read unless another limit is given: 0.9 GB of memory at 16 kHz."""


@dataclass(frozen=True)
class ReadingOptions:
    """How recordings are read.

    Attributes:
        max_minutes: longer recordings are refused, in minutes; ``inf``: none is. Decoded audio takes 4 bytes for each
            sample at the rate that it is read at, however small its file is.
        strict: refuse a recording that holds less than its file promises. Otherwise what is left of it is used, with a
            :class:`~losatok_ext.errors.DamagedAudioWarning`.

    Raises:
        UserError: ``max_minutes`` is not a number above 0.
    """

    max_minutes: float = MAX_MINUTES
    strict: bool = False

    def __post_init__(self) -> None:
        if math.isnan(self.max_minutes) or self.max_minutes <= 0:
            raise UserError(f"--max-minutes (max_minutes) takes a number above 0, got {self.max_minutes:g}")

    def check_length(self, path: str | os.PathLike[str], seconds: float) -> None:
        """Raise AudioFileError where a recording of ``seconds``, or of which so many were decoded, is too long."""
        if seconds > self.max_minutes * 60:
            raise AudioFileError(
                f"{path} is {seconds / 60:.1f} minutes long or longer, and the limit is {self.max_minutes:g} minutes; "
                "cut it into shorter files, or raise the limit with --max-minutes (max_minutes in Python)"
            )

    def tell_damage(self, path: str | os.PathLike[str], damage: str) -> None:
        """Warn that a recording is damaged.

        Raises:
            AudioFileError: damaged recordings are refused.
        """
        sentence = f"{path} is truncated or damaged: {damage}"
        if self.strict:
            raise AudioFileError(
                f"{sentence}; copy or download it again, or leave out --strict (strict in Python) to use what is left"
            )
        warnings.warn(f"{sentence}; what is left of it is used (--strict refuses it)", DamagedAudioWarning, 1)


_options = ReadingOptions()


def reading_options(max_minutes: float | None = None, strict: bool | None = None) -> ReadingOptions:
    """The setting of the process, with the values that are given here in place of its own.

    Raises:
        UserError: ``max_minutes`` is not a number above 0.
    """
    return dataclasses.replace(
        _options,
        max_minutes=_options.max_minutes if max_minutes is None else max_minutes,
        strict=_options.strict if strict is None else strict,
    )


@contextmanager
def reading(max_minutes: float | None = None, strict: bool | None = None) -> Iterator[None]:
    """Inside this ``with`` block, all threads of the process read recordings with these options; None: as before.

    Args:
        max_minutes, strict: as in :class:`ReadingOptions`.

    Raises:
        UserError: ``max_minutes`` is not a number above 0.
    """
    global _options
    before = _options
    _options = reading_options(max_minutes, strict)
    try:
        yield
    finally:
        _options = before


class Content:
    """An open file as libsndfile reads it: errors are kept for :meth:`check`, since its callbacks cannot raise.

    Args:
        file: open and seekable, such as a part of a shard.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def check(self, path: Path) -> None:
        """Raise AudioFileError where reading has failed; ``path`` names the file."""
        if self._error is not None:
            raise AudioFileError(
                f"{path} cannot be read: {self._error.strerror or self._error}; copy or download it again"
            ) from self._error

    def read(self, count: int = -1) -> bytes:
        """The next ``count`` bytes; fewer at the end of the file, and none after an error."""
        try:
            return self._file.read(count)
        except OSError as error:
            self._error = self._error or error
            return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place. One before the beginning, which a damaged header may ask for, is ignored."""
        try:
            return self._file.seek(offset, whence)
        except ValueError:
            return self._file.tell()
        except OSError as error:
            self._error = self._error or error
            return self._file.tell()

    def tell(self) -> int:
        """The present place, in bytes from the beginning."""
        return self._file.tell()
