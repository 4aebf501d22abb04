"""Finds input files: the one rule by which every command turns the names on its command line into files.

* A file that is named itself is taken, whatever it is called.
* A folder is searched, with the folders below it, for files with the wanted suffixes. Hidden files and folders (names
  that begin with a dot) are skipped.
* Links to files are followed. Links to folders are followed too, except links to a folder above: a link ``up -> ..``
  would bring in files that were not named. No folder is searched twice.
* A pattern (``*``, ``?``, ``[]``, and ``**`` for any number of folders) gives the files and folders that match it.
* A manifest (:mod:`losatok_ext.recordings.manifest`) gives the files that its lines name.

Each file comes once, however often it is named. The files of a folder are sorted by name, so the order does not depend
on the file system.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from losatok_ext.errors import InputError
from losatok_ext.recordings.manifest import is_manifest, read_manifest


@dataclass(frozen=True)
class Source:
    """An input file, and its name relative to the folder, pattern or manifest that it was found by (only its own name
    when it was named itself)."""

    path: Path
    relative: Path

    @property
    def domain(self) -> str:
        """The first folder of ``relative``; ``""`` for a file that lies in none.

        The first, because that is where data sets are divided into speech, music and so on; deeper folders are
        speakers, albums or dates. The name of the searched folder itself does not count: moving the data should not
        change results.
        """
        return self.relative.parts[0] if len(self.relative.parts) > 1 else ""


@dataclass(frozen=True)
class Failure:
    """An input that could not be used, and one sentence that says why."""

    path: Path
    message: str


@dataclass
class Inputs:
    """What :func:`find_inputs` found: ``sources`` without repeats, and ``failures`` for names that lead nowhere."""

    sources: list[Source] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def find_inputs(names: Iterable[str | os.PathLike[str]], suffixes: Sequence[str], kind: str = "audio") -> Inputs:
    """The input files that ``names`` stand for: files, folders, patterns and manifests; see the head of this module.

    Args:
        names: what the user wrote. A named file that does not exist is taken too: reading it will say so.
        suffixes: of the files to look for in folders and patterns, lower case, such as ``(".wav", ".flac")``.
        kind: what such files are called in messages.

    Raises:
        InputError: a name is empty, or a manifest is broken (file and line are named).
    """
    found = Inputs()
    seen: set[str] = set()

    def add(path: Path, relative: Path) -> None:
        real = os.path.realpath(path) if "\0" not in os.fspath(path) else os.fspath(path)
        if real not in seen:
            seen.add(real)
            found.sources.append(Source(path, relative))

    def add_folder(folder: Path, prefix: Path) -> None:
        files, failures = search_folder(folder, suffixes)
        found.failures.extend(failures)
        if not files and not failures:
            found.failures.append(Failure(folder, f"{folder} holds no {kind} files ({', '.join(suffixes)})"))
        for file in files:
            add(folder / file, prefix / file)

    for name in names:
        if not os.fspath(name):
            raise InputError(f"a name of an input is empty; name {kind} files, folders or patterns")
        path = Path(name)
        if path.is_dir():
            add_folder(path, Path())
        elif is_manifest(path):
            for item in read_manifest(path):
                add(item.path, _inside(item.name))
        elif os.path.lexists(path) or not glob.has_magic(os.fspath(name)):
            add(path, Path(path.name))
        else:
            root, matches = _match(os.fspath(name), suffixes, found.failures)
            if not matches:
                found.failures.append(Failure(path, f"{path} matches no file; check the pattern"))
            for match in matches:
                if match.is_dir():
                    add_folder(match, match.relative_to(root))
                else:
                    add(match, match.relative_to(root))
    return found


def _inside(name: str) -> Path:
    """The name that a manifest gives a file, where it leads down from the manifest's folder; else its last part."""
    path = Path(os.path.normpath(name))
    return Path(path.name) if path.is_absolute() or ".." in path.parts else path


def search_folder(folder: Path, suffixes: Sequence[str]) -> tuple[list[Path], list[Failure]]:
    """The files with ``suffixes`` in ``folder`` and the folders below it, and what could not be searched.

    Hidden files and folders, links and the order are treated as the head of this module says. Where a file can be
    reached under its own name and by a link, its own name counts.

    Returns:
        Names relative to ``folder``, sorted; each file once.
    """
    top = os.path.realpath(folder)
    files: dict[str, str] = {}  # the real path of a file -> its name below the folder
    failures: list[Failure] = []
    entered: set[str] = set()
    links: list[tuple[str, str, str]] = []  # the name below the folder, the path, the real folder that it lies in

    def enter(real: str, place: str, name: str) -> None:
        waiting = [(real, place, name)]
        while waiting:
            real, place, name = waiting.pop()
            if real in entered:
                continue
            entered.add(real)
            try:
                with os.scandir(place) as listing:
                    entries = list(listing)
            except OSError as error:
                message = f"{place} cannot be searched: {error.strerror or error}"
                failures.append(Failure(Path(place), message))
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                below = os.path.join(name, entry.name)
                if entry.is_symlink():
                    links.append((below, entry.path, real))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append((os.path.join(real, entry.name), entry.path, below))
                elif _has_suffix(entry.name, suffixes) and entry.is_file(follow_symlinks=False):
                    files.setdefault(os.path.join(real, entry.name), below)

    enter(top, os.fspath(folder), "")
    while links:
        following, links[:] = sorted(links), []
        for below, path, holder in following:
            real = os.path.realpath(path)
            if os.path.isdir(path):
                if not (_is_above(real, top) or _is_above(real, holder)):
                    enter(real, path, below)
            elif _has_suffix(below, suffixes):
                if os.path.isfile(path):
                    files.setdefault(real, below)
                elif not os.path.exists(path):
                    failures.append(Failure(Path(path), f"{path} is a link to a file that does not exist"))
    return [Path(name) for name in sorted(files.values(), key=lambda name: name.split(os.sep))], failures


def _has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes


def _is_above(folder: str, other: str) -> bool:
    """Whether ``folder`` is ``other`` or holds it; both are real paths."""
    return os.path.commonpath([folder, other]) == folder


def _match(pattern: str, suffixes: Sequence[str], failures: list[Failure]) -> tuple[Path, list[Path]]:
    """The folder that ``pattern`` starts from (its leading parts without wildcards), and the files and folders that
    match it; of a pattern with ``**`` only files."""
    parts = Path(pattern).parts
    count = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root, rest = Path(*parts[:count]), parts[count:]
    if "**" in rest:  # searched by the rule for folders: glob itself would run in circles where links do
        if not root.is_dir():
            return root, []
        files, unreadable = search_folder(root, suffixes)
        failures.extend(unreadable)
        return root, [root / file for file in files if _fits(file.parts, rest)]
    matches = [Path(match) for match in sorted(glob.glob(pattern))]
    matches = [match for match in matches if match.is_dir() or match.suffix.lower() in suffixes]
    return root, [match for match in matches if not _passes_upward_link(match, root)]


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a path of ``names`` matches a pattern of ``parts``, where ``**`` stands for any number of folders."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_fits(names[i:], parts[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _passes_upward_link(match: Path, root: Path) -> bool:
    """Whether the way from ``root`` to ``match`` takes a link to a folder above that link."""
    place = root
    for part in match.relative_to(root).parts:
        holder = place
        place = place / part
        if place.is_symlink() and place.is_dir():
            real = os.path.realpath(place)
            if _is_above(real, os.path.realpath(holder)) or _is_above(real, os.path.realpath(root)):
                return True
    return False
