"""Load the native module `_C`, or say why it cannot be used and what to do."""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path
from types import ModuleType

import torch

from losatok_ext.errors import UserError

_CURE = (
    "Build losatok_ext against the torch that is installed now: in a checkout of losatok_ext type "
    "`pip install --no-build-isolation --no-deps --force-reinstall .` "
    'Until then, use_backend("reference") runs every op in plain PyTorch.'
)


def _built_for() -> str:
    """What the build wrote down about itself: torch, Python, system and CUDA."""
    for folder in sys.modules[__package__].__path__:  # an editable install has several
        facts = Path(folder) / "_build_facts.txt"
        if facts.is_file():
            return facts.read_text().strip()
    return "unknown (no record of the build was found)"


def _load() -> tuple[ModuleType | None, str | None]:
    found = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    try:
        module = importlib.import_module("losatok_ext._C")
    except ImportError as error:
        reason = f"the native ops of losatok_ext could not be loaded ({error})"
    else:
        try:
            module.instruction_set()
        except ValueError as error:  # LOSATOK_ISA names none
            raise UserError(str(error)) from None
        built_torch = module.build_info()["torch"].split("+")[0]
        if built_torch.split(".")[:2] == torch.__version__.split("+")[0].split(".")[:2]:
            return module, None
        reason = "the native ops of losatok_ext were built for another torch"
    return None, f"{reason}. Built for: {_built_for()}. Found: {found}. {_CURE}"


module, failure = _load()
"""The native module, or None and the sentence that says why."""
