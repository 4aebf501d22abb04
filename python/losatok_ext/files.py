"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STEM, _SUFFIX = 32, 16  # characters of a name that a temporary name repeats: a file name takes at most 255 bytes


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``; on success it is renamed to ``path``, on an error removed.

    The temporary name begins with a dot and the first letters of ``path``, and has its suffix, since writers choose a
    format by it. Parent folders are made. The file is flushed to disk before the rename, so that a crash leaves the old
    file or the new one.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix if len(path.suffix) <= _SUFFIX else ""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:_STEM]}-", suffix=suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
