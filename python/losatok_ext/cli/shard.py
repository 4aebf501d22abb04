"""``losatok shard``: recordings in WebDataset shards. Training gives the same result, and slow disks read faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from losatok_ext.cli.common import check_folder, stage_bar
from losatok_ext.cli.options import reads_recordings
from losatok_ext.cli.precompute import Megabytes, finish, interruptible
from losatok_ext.cli.training_options import Data


@reads_recordings
def shard(
    data: Data,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the shards.", show_default=False)],
    sample_rate: Annotated[
        int, typer.Option(help="Sample rate of the shards in Hz; the models take 16000.", min=1000, max=655_350)
    ] = 16_000,
    megabytes: Megabytes = 256.0,
) -> None:
    """Pack recordings into shards (tar files of FLAC and JSON, and an index) that every stage of training takes.

    The same command again goes on where it stopped. Recordings that cannot be used are left out and named at the end
    (exit code 2).
    """
    check_folder(output)
    from losatok_ext.training.precompute.tokens import shard_recordings

    with interruptible(output), stage_bar() as say:
        summary = shard_recordings(
            data, output, sample_rate, megabytes, lambda done, total: say("packing clips", done, total)
        )
    finish(summary, "packed")
