"""Intel Neural Compressor 3.x: `"ilwp"` as an algorithm of its PyTorch API.

Importing this registers it: without that, INC would skip a configuration of ilwp without a word.
"""

from .algorithm import attached, register, regularizer
from .composition import compose, config_from_dict
from .config import IlwpConfig, schema
from .saving import load, save
from .stacking import compress_exported, stack
from .tuning import Trial, Tuned, autotune

__all__ = [
    "IlwpConfig",
    "Trial",
    "Tuned",
    "attached",
    "autotune",
    "compose",
    "compress_exported",
    "config_from_dict",
    "load",
    "register",
    "regularizer",
    "save",
    "schema",
    "stack",
]

register()
