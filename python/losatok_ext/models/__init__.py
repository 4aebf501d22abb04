"""Models on the modules: the tokenizer, the generator, their configurations and their checkpoints."""

from losatok_ext.models.generator.dit import DiT
from losatok_ext.models.generator.dit_conditions import Conditions
from losatok_ext.models.generator.dit_config import DiTConfig
from losatok_ext.models.generator.generator import Generator, GeneratorConfig
from losatok_ext.models.generator.text import ByteTextEncoder, HuggingFaceTextEncoder
from losatok_ext.models.tokenizer.config import LoSATokConfig
from losatok_ext.models.tokenizer.latents import Latents
from losatok_ext.models.tokenizer.losatok import LoSATok

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
