"""Typed configurations: frozen dataclasses whose fields are checked, read from mappings and written as mappings.

The models, the quantizers, the samplers and training all describe themselves by a :class:`Configuration`. A field's
annotation says what the field takes: its type, and for numbers and lists a rule such as :class:`Range`. Values are
checked whenever a configuration is made, whether in Python, from JSON, from YAML or from the command line.

Why not a library: msgspec and the like check what is decoded but not what Python code passes to a constructor, their
messages name neither the value nor the keys that were meant, and each would be a new dependency of the core package.
"""

from losatok_ext.configuration.base import Configuration
from losatok_ext.configuration.documentation import Setting, setting
from losatok_ext.configuration.layers import from_layers, merge
from losatok_ext.configuration.reading import parse_assignments, read_json, read_yaml
from losatok_ext.configuration.values import Count, Length, Multiple, NonNegative, Positive, Range, Share, Whole

__all__ = [
    "Configuration",
    "Count",
    "Length",
    "Multiple",
    "NonNegative",
    "Positive",
    "Range",
    "Setting",
    "Share",
    "Whole",
    "from_layers",
    "merge",
    "parse_assignments",
    "read_json",
    "read_yaml",
    "setting",
]
