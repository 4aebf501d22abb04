"""Where the output of each input file goes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from losatok_ext.errors import UserError
from losatok_ext.recordings.find import Source


def place_outputs(
    sources: Sequence[Source], folder: str | os.PathLike[str], suffix: str, replaces: Sequence[str]
) -> list[Path]:
    """The output file of each source: its relative name under ``folder``, with ``suffix`` as its suffix.

    Two sources that would get the same output (``a.wav`` and ``a.flac``) keep their own suffix in its name
    (``a.wav.losatok``, ``a.flac.losatok``). Where that is not enough, their folders are added.

    Args:
        sources: the inputs, as :func:`~losatok_ext.recordings.find.find_inputs` found them.
        folder: of the outputs.
        suffix: of the outputs, such as ``".losatok"``.
        replaces: suffixes of inputs, lower case, that ``suffix`` replaces; to any other suffix it is added.

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
        if not movable:  # at level 3 names are as different as the sources
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
