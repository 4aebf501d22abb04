"""losatok_ext: fused PyTorch ops for low-dimensional audio latents, and the complete LoSATok stack on top of them.

The names below are imported when they are first used. ``import losatok_ext`` and ``losatok --help`` therefore stay
quick: they do not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; tests compare it with _MODULES
    from losatok_ext import audio, errors, formats, generation, jobs, models, nn, ops, recordings, training
    from losatok_ext.environment import info
    from losatok_ext.models import Conditions, DiT, DiTConfig, Generator, Latents, LoSATok, LoSATokConfig
    from losatok_ext.ops.dispatch import BackendUnavailableError, use_backend

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailableError",
    "Conditions",
    "DiT",
    "DiTConfig",
    "Generator",
    "Latents",
    "LoSATok",
    "LoSATokConfig",
    "__version__",
    "audio",
    "errors",
    "formats",
    "generation",
    "info",
    "jobs",
    "models",
    "nn",
    "ops",
    "recordings",
    "training",
    "use_backend",
]

_MODULES = {
    "losatok_ext.environment": ("info",),
    "losatok_ext.models": ("Conditions", "DiT", "DiTConfig", "Generator", "Latents", "LoSATok", "LoSATokConfig"),
    "losatok_ext.ops.dispatch": ("BackendUnavailableError", "use_backend"),
}
"""Where the names are defined that are not subpackages."""

if not TYPE_CHECKING:  # a type checker would take every unknown name for Any

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module 'losatok_ext' has no attribute {name!r}")
        module = next((module for module, names in _MODULES.items() if name in names), None)
        value = getattr(import_module(module), name) if module else import_module(f"losatok_ext.{name}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
