"""Intel Neural Compressor 3.x: `"ilwp"` as an algorithm of its PyTorch API.

Importing this registers it: without that, INC would skip a configuration of ilwp without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .versions import check

check()

from .algorithm import regularizer
from .composition import compose, config_from_dict
from .config import IlwpConfig, schema
from .registration import config_of, register
from .saving import load, save
from .stacking import compress_exported, stack
from .state import attached
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
    "config_of",
    "load",
    "methods",
    "register",
    "regularizer",
    "save",
    "schema",
    "stack",
]

if TYPE_CHECKING:
    from ilwp_plugin.compare.methods import Method


def methods() -> Mapping[str, Method]:
    """INC's own quantization as methods of `ilwp compare`, by name."""
    from .baselines import METHODS

    return METHODS


register()
