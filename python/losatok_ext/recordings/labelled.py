"""Recordings with what is known about each, for evaluations."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from losatok_ext.audio.files import READABLE_SUFFIXES
from losatok_ext.recordings.find import Failure, Source, find_inputs
from losatok_ext.recordings.manifest import Item, Segment, is_manifest, read_manifest

__all__ = ["Item", "Segment", "find_items", "item_of"]


def find_items(
    names: Iterable[str | os.PathLike[str]], suffixes: Sequence[str] = READABLE_SUFFIXES
) -> tuple[list[Item], list[Failure]]:
    """The recordings that ``names`` stand for, with what is known about each, and names that lead nowhere.

    Args:
        names: manifests, folders, patterns and files, as :func:`~losatok_ext.recordings.find.find_inputs` takes them.
        suffixes: of the files to look for in folders and patterns.

    Returns:
        Each file once, under a name of its own; of a file with several lines in manifests the first line counts.

    Raises:
        InputError: a name is empty, or a manifest is broken (file and line are named).
    """
    items: list[Item] = []
    failures: list[Failure] = []
    for name in names:
        path = Path(name)
        if is_manifest(path) and not path.is_dir():
            items += read_manifest(path)
            continue
        found = find_inputs([name], suffixes)
        failures += found.failures
        items += map(item_of, found.sources)
    unique: dict[str, Item] = {}
    for item in items:
        unique.setdefault(os.path.realpath(item.path), item)
    counts = Counter(item.name for item in unique.values())
    distinct = [
        item if counts[item.name] == 1 else dataclasses.replace(item, name=item.path.as_posix())
        for item in unique.values()
    ]
    return distinct, failures


def item_of(source: Source) -> Item:
    """What is known about a file that was found in a folder: its domain (:attr:`Source.domain`), and as its text the
    name of the folder that it lies in."""
    values = {"domain": source.domain} if source.domain else {}
    return Item(source.path, source.relative.as_posix(), values, text=source.relative.parent.name)
