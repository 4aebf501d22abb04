"""Models on the modules: the tokenizer, the generator, their configurations and their checkpoints."""

from losatok_ext.models.config import LoSATokConfig
from losatok_ext.models.dit import DiT
from losatok_ext.models.dit_conditions import Conditions
from losatok_ext.models.dit_config import DiTConfig
from losatok_ext.models.generator import Generator, GeneratorConfig
from losatok_ext.models.latents import Latents
from losatok_ext.models.losatok import LoSATok
from losatok_ext.models.text import ByteTextEncoder, HuggingFaceTextEncoder

__all__ = [
    "ByteTextEncoder",
    "Conditions",
    "DiT",
    "DiTConfig",
    "Generator",
    "GeneratorConfig",
    "HuggingFaceTextEncoder",
    "Latents",
    "LoSATok",
    "LoSATokConfig",
]
