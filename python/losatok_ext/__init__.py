"""losatok_ext: fused PyTorch ops for low-dimensional audio latents, and the complete LoSATok stack on top of them.

The names below are imported when they are first used, so that ``import losatok_ext`` and ``losatok --help`` stay quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "BackendUnavailableError": "losatok_ext.ops.dispatch",
    "use_backend": "losatok_ext.ops.dispatch",
    "info": "losatok_ext.environment",
    "Conditions": "losatok_ext.models",
    "DiT": "losatok_ext.models",
    "DiTConfig": "losatok_ext.models",
    "Generator": "losatok_ext.models",
    "Latents": "losatok_ext.models",
    "LoSATok": "losatok_ext.models",
    "LoSATokConfig": "losatok_ext.models",
}
_SUBPACKAGES = ("audio", "errors", "formats", "generation", "jobs", "models", "nn", "ops", "recordings", "training")
__all__ = ["__version__", *_WHERE, *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module = import_module(_WHERE[name])
        value = getattr(module, name)
    elif name in _SUBPACKAGES:
        value = import_module(f"losatok_ext.{name}")
    else:
        raise AttributeError(f"module 'losatok_ext' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
