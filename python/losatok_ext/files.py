"""Files that are written completely or not at all, and folders that one process at a time may write."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from losatok_ext.errors import UserError

LOCK = ".lock"
"""Name of the lock file in a locked folder. It stays there; only the lock on it matters."""
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


def digest(path: str | os.PathLike[str]) -> str:
    """32 hex digits that name the content of a file: its BLAKE2b hash. About a second for a gigabyte.

    Raises:
        OSError: the file cannot be read.
    """
    hashed = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


@contextmanager
def locked_folder(folder: Path, in_use: UserError) -> Iterator[None]:
    """Make ``folder`` if needed, and lock it while the context is open.

    The operating system holds the lock for the process and releases it when the process ends, killed or not.

    Args:
        folder: in which the lock file :data:`LOCK` is made.
        in_use: raised where another process holds the lock.

    Raises:
        UserError: ``in_use``, or filelock is not installed.
        OSError: the folder or the lock file cannot be made.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise UserError(f"locking {folder} needs filelock ({error}); pip install 'losatok-ext[train]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise in_use from None
    try:
        yield
    finally:
        lock.release()
