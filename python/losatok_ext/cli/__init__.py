"""The ``losatok`` command. This module is the console entry; the commands are one module each.

Nothing here or in :mod:`losatok_ext.cli.app` imports torch, so that ``losatok --help`` is quick: commands import what
they need when they run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from losatok_ext.standard_error import keep_apart

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: that of the process) and return its exit code.

    0: done. 2: wrong usage, or something the user can put right; one sentence on stderr says what, and other inputs
    were still worked on. 130: interrupted. 1: a defect of this program. Tracebacks only with ``--debug``.
    """
    if "torch" not in sys.modules:
        # OpenMP reads this when torch loads it. By default its threads spin while they wait for each other. Where other
        # programs use the same cores, that takes many times as long (benchmarks/busy_machine.py, docs/speed.md).
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        keep_apart()
    try:
        from losatok_ext.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print(f"losatok: the command line needs {error.name}: pip install 'losatok-ext[cli]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return run(arguments)
