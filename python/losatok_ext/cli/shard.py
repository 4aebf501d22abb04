"""``losatok shard``: recordings into WebDataset shards, which train the same and read faster from slow disks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import check_folder, stage_bar
from losatok_ext.cli.precompute import Megabytes, finish, interruptible
from losatok_ext.cli.training_options import Data


def shard(
    data: Data,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the shards.", show_default=False)],
    sample_rate: Annotated[int, typer.Option(help="Hz of what is written; the models take 16000.", min=1000)] = 16_000,
    megabytes: Megabytes = 256.0,
) -> None:
    """Pack recordings into shards (tar files of FLAC and JSON, and an index) that every stage of training takes.

    The same command again goes on where it stopped. A recording that cannot be used is named at the end (exit code 2)
    and left out.
    """
    check_folder(output)
    from losatok_ext.training.precompute.tokens import shard_recordings

    with interruptible(output), stage_bar() as say:
        summary = shard_recordings(
            data, output, sample_rate, megabytes, lambda done, total: say("packing clips", done, total)
        )
    finish(summary, "packed")
