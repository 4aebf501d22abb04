"""Models on the modules: the tokenizer, its configuration and its checkpoints."""

from losatok_ext.models.config import LoSATokConfig
from losatok_ext.models.latents import Latents
from losatok_ext.models.losatok import LoSATok

__all__ = ["Latents", "LoSATok", "LoSATokConfig"]
