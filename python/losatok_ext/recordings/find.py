"""From what a user names on a command line to a list of input files, and where the output of each goes."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from losatok_ext.errors import UserError


@dataclass(frozen=True)
class Source:
    """An input file, and its name relative to the folder or pattern it was found by (bare when named itself)."""

    path: Path
    relative: Path


@dataclass(frozen=True)
class Failure:
    """An input that could not be used, and one sentence that says why."""

    path: Path
    message: str


@dataclass
class Found:
    """What :func:`find_inputs` found: ``sources`` without repeats, and ``failures`` for names that lead nowhere."""

    sources: list[Source] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def find_inputs(names: Iterable[str | os.PathLike[str]], suffixes: Sequence[str], kind: str = "audio") -> Found:
    """Files for ``names``: files, folders (searched recursively for ``suffixes``, links followed) and glob patterns
    (``**`` too).

    A file that is named itself is taken whatever its suffix, and also when it does not exist: reading it will say so.
    Hidden files are passed over in folders. Each file comes once, however often it is named.
    """
    found = Found()
    seen: set[str] = set()

    def add(path: Path, relative: Path) -> None:
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            found.sources.append(Source(path, relative))

    for name in names:
        path = Path(name)
        if path.is_dir():
            _search(path, Path(), suffixes, kind, add, found)
        elif os.path.lexists(path) or not glob.has_magic(os.fspath(name)):
            add(path, Path(path.name))
        else:
            root = _fixed_part(os.fspath(name))
            matches = sorted(glob.glob(os.fspath(name), recursive=True))
            if not matches:
                found.failures.append(Failure(path, f"{path} matches no file; check the pattern"))
            for match in map(Path, matches):
                if match.is_dir():
                    if "**" not in os.fspath(name):
                        _search(match, match.relative_to(root), suffixes, kind, add, found)
                elif match.suffix.lower() in suffixes:
                    add(match, match.relative_to(root))
    return found


def _fixed_part(pattern: str) -> Path:
    """The folder that a glob pattern starts from: its leading parts without wildcards."""
    parts = Path(pattern).parts
    count = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:count])


def _search(folder: Path, prefix: Path, suffixes: Sequence[str], kind: str, add, found: Found) -> None:
    before = len(found.sources)
    entered = {os.path.realpath(folder)}

    def report(error: OSError) -> None:
        place = Path(os.fsdecode(error.filename or folder))
        found.failures.append(Failure(place, f"{place} cannot be searched: {error.strerror or error}"))

    hits = 0
    for root, folders, files in os.walk(folder, followlinks=True, onerror=report):
        keep = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(root, name))
            if not name.startswith(".") and real not in entered:  # a link back up would never end
                entered.add(real)
                keep.append(name)
        folders[:] = keep
        for name in sorted(files):
            path = Path(root, name)
            if path.suffix.lower() in suffixes and not name.startswith("."):
                hits += 1
                add(path, prefix / path.relative_to(folder))
    if hits == 0 and len(found.sources) == before:
        found.failures.append(Failure(folder, f"{folder} holds no {kind} files ({', '.join(suffixes)})"))


def place_outputs(
    sources: Sequence[Source], folder: str | os.PathLike[str], suffix: str, replaces: Sequence[str]
) -> list[Path]:
    """The output file of each source under ``folder``: its relative name with ``suffix`` in place of one of
    ``replaces``.

    Sources that would meet in one output are told apart by keeping their own suffix (``a.wav.losatok`` and
    ``a.flac.losatok``), and if that does not do, by the folders in which they lie.

    Raises:
        UserError: a source is listed twice, or an output is one of the sources.
    """
    folder = Path(folder)
    absolute = [Path(os.path.abspath(source.path)) for source in sources]
    common = Path(os.path.commonpath([path.parent for path in absolute])) if sources else Path()

    def name(index: int, level: int) -> Path:
        relative = sources[index].relative if level < 2 else absolute[index].relative_to(common)
        strip = level % 2 == 0 and relative.suffix.lower() in replaces
        return relative.with_name((relative.stem if strip else relative.name) + suffix)

    levels = [0] * len(sources)
    while True:
        names = [name(i, level) for i, level in enumerate(levels)]
        counts = Counter(names)
        clashing = [i for i, n in enumerate(names) if counts[n] > 1]
        if not clashing:
            break
        movable = [i for i in clashing if levels[i] < 3]
        if not movable:  # the names of level 3 differ as their sources do
            first, second = (sources[i].path for i in clashing[:2])
            place = folder / names[clashing[0]]
            raise UserError(f"{first} and {second} would both be written to {place}; name each once")
        for i in movable:
            levels[i] += 1
    outputs = [folder / n for n in names]
    inputs = {os.path.realpath(path) for path in absolute}
    for output in outputs:
        if os.path.realpath(output) in inputs:
            raise UserError(f"{output} is one of the inputs and would be overwritten; choose another output folder")
    return outputs
