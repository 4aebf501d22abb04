"""Sampling from a generator: new clips, and edits of recorded ones.

The names below are imported when they are first used, so that ``import losatok_ext.generation`` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from losatok_ext.generation.generation import Edited, edit, generate
    from losatok_ext.generation.guidance import Guidance
    from losatok_ext.generation.sampling import SamplerConfig
    from losatok_ext.generation.schedules import Schedule

__all__ = ["Edited", "Guidance", "SamplerConfig", "Schedule", "edit", "generate"]

_WHERE = {
    "Edited": "generation",
    "Guidance": "guidance",
    "SamplerConfig": "sampling",
    "Schedule": "schedules",
    "edit": "generation",
    "generate": "generation",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'losatok_ext.generation' has no attribute {name!r}")
    value = getattr(import_module(f"losatok_ext.generation.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
