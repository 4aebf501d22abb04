"""Files that are written completely or not at all, and folders that one process at a time may write."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from losatok_ext.errors import UserError

try:
    import fcntl
except ImportError:  # no Unix: temporary folders are not locked, and those of killed processes stay
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the lock file in a locked folder. It stays there; only the lock on it matters."""
TEMPORARY = ".losatok-part-"
"""How the names of temporary folders begin."""
_STEM, _SUFFIX = 32, 16  # characters of a name that a temporary name repeats: a file name takes at most 255 bytes
_searched: set[Path] = set()  # folders whose leftovers this process has removed


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name near ``path``; on success it is renamed to ``path``, on an error removed.

    It lies in a temporary folder beside ``path``, whose name begins with :data:`TEMPORARY` and in which the writer may
    make files of its own (safetensors writes one and renames it). It begins with a dot and the first letters of
    ``path``, and has its suffix, since writers choose a format by it. Parent folders are made. The file is flushed to
    disk before the rename, so that a crash leaves the old file or the new one. The first time that a process writes
    into a folder it removes what killed processes have left there (:func:`remove_leftovers`).

    Raises:
        OSError: the folder cannot be made or written, the disk is full, or no file was written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.resolve()
    if folder not in _searched:
        _searched.add(folder)
        remove_leftovers(folder)
    suffix = path.suffix if len(path.suffix) <= _SUFFIX else ""
    with _temporary_folder(path.parent) as place:
        temporary = place / f".{path.stem[:_STEM]}{suffix}"
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``, locked where the file system has locks; removed at the end.

    The lock is on a file in it, not on what is written there: a writer may replace that by another file.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=parent))
        try:
            lock = _lock(folder)
            break
        except FileNotFoundError:  # another process took it for a leftover before it was locked
            continue
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    try:
        yield folder
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)  # another process may be doing it too by now


def _lock(folder: Path, wait: bool = True) -> int | None:
    """Lock a temporary folder; the open handle that holds the lock, or None where there are no locks.

    Raises:
        FileNotFoundError: the folder was removed before it was locked.
        BlockingIOError: with ``wait`` false: another process holds the lock.
        OSError: the lock file cannot be made.
    """
    if fcntl is None:
        return None
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)  # NFS locks only files that are open for writing
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # no locks there: others cannot take the folder for a leftover either
        os.close(handle)
        return None
    if not os.fstat(handle).st_nlink:
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    return handle


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary folders that killed processes have left in ``folder``, and return them.

    That of a living process is locked, and stays. So do all where the file system has no locks.
    """
    removed: list[Path] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(TEMPORARY) or not entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError):
                lock = _lock(Path(entry.path), wait=False)
                if lock is not None:
                    try:
                        shutil.rmtree(entry.path)
                        removed.append(Path(entry.path))
                    finally:
                        os.close(lock)
    return removed


def digest(path: str | os.PathLike[str]) -> str:
    """32 hex digits that name the content of a file: its BLAKE2b hash. One to two seconds for a gigabyte.

    Raises:
        OSError: the file cannot be read.
    """
    hashed = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def checksum(path: str | os.PathLike[str]) -> int:
    """The CRC-32 of a file's content: it tells a damaged file, in about half a second for a gigabyte.

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
