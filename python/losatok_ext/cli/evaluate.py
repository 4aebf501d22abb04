"""``losatok evaluate``: measurements of a model. Each is a subcommand that leaves a report."""

from __future__ import annotations

import typer

from losatok_ext.cli.evaluate_generation import generation
from losatok_ext.cli.evaluate_precision import precision
from losatok_ext.cli.evaluate_probe import probe
from losatok_ext.cli.evaluate_reconstruction import reconstruction
from losatok_ext.cli.evaluate_storage import storage

app = typer.Typer(no_args_is_help=True, help="Measure a model; each measurement leaves a report.")


@app.callback()
def _group() -> None:
    """Measure a model on recordings."""


for _command in (reconstruction, probe, generation, storage, precision):
    app.command(_command.__name__)(_command)
