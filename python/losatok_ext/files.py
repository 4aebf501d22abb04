"""Files that are written completely or not at all, and folders that one process at a time may write."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from losatok_ext.errors import UserError

try:
    import fcntl
except ImportError:  # no Unix: temporary files are not locked, and those of killed processes stay
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the lock file in a locked folder. It stays there; only the lock on it matters."""
TEMPORARY = ".losatok-part-"
"""How the names of temporary files begin."""
_STEM, _SUFFIX = 32, 16  # characters of a name that a temporary name repeats: a file name takes at most 255 bytes
_searched: set[Path] = set()  # folders whose leftovers this process has removed


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``; on success it is renamed to ``path``, on an error removed.

    The temporary name begins with :data:`TEMPORARY` and the first letters of ``path``, and has its suffix, since
    writers choose a format by it. Parent folders are made. The file is flushed to disk before the rename, so that a
    crash leaves the old file or the new one. The first time that a process writes into a folder it removes what killed
    processes have left there (:func:`remove_leftovers`).

    Raises:
        OSError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.resolve()
    if folder not in _searched:
        _searched.add(folder)
        remove_leftovers(folder)
    temporary, handle = _new_temporary(path)
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
        os.close(handle)


def _new_temporary(path: Path) -> tuple[Path, int]:
    """A new file beside ``path``, and an open handle that holds a lock on it where the file system has locks."""
    suffix = path.suffix if len(path.suffix) <= _SUFFIX else ""
    while True:
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.stem[:_STEM]}-", suffix=suffix, dir=path.parent)
        if fcntl is not None:
            with suppress(OSError):  # no locks there: others cannot take it for a leftover either
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return Path(name), handle
        os.close(handle)  # between the two calls another process took it for a leftover


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that killed processes have left in ``folder``, and return them.

    The file of a living process is locked, and stays. So do all where the file system has no locks.
    """
    removed: list[Path] = []
    if fcntl is None:
        return removed
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(TEMPORARY) or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(OSError), open(entry.path, "r+b") as file:  # NFS locks only files that are open for writing
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)
                removed.append(Path(entry.path))
    return removed


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


def checksum(path: str | os.PathLike[str]) -> int:
    """The CRC-32 of a file's content: it tells a damaged file, at a third of a second for a gigabyte.

    Raises:
        OSError: the file cannot be read.
    """
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


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
