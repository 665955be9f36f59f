"""NNCF: the same JSON config, with a section `ilwp`, on NNCF 2.19 and on NNCF 3."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ilwp_plugin.errors import MissingDependencyError

try:
    _VERSION = version("nncf")
except PackageNotFoundError:
    raise ModuleNotFoundError("No module named 'nncf'", name="nncf") from None

if TYPE_CHECKING:
    from ilwp_plugin.compare.methods import Method

__all__ = [
    "NNCFConfig",
    "added_state",
    "create_compressed_model",
    "methods",
    "register",
    "register_default_init_args",
    "restore",
    "schema",
]

if _VERSION.startswith("2.19."):
    if "nncf.torch" not in sys.modules:
        os.environ.setdefault("NNCF_TORCH_LEGACY_TRACING", "1")  # read when nncf.torch is imported
    from .legacy import NNCFConfig, create_compressed_model, register, register_default_init_args, restore, schema
    from .quantizers import added_state
elif _VERSION.startswith("3."):
    from .modern import (
        NNCFConfig,
        apply_ilwp,
        controller_of,
        create_compressed_model,
        load_from_config,
        plain_model,
        register,
        register_default_init_args,
        restore,
        schema,
        stack,
    )
    from .quantizers import added_state

    __all__ += ["apply_ilwp", "controller_of", "load_from_config", "plain_model", "stack"]
else:
    raise MissingDependencyError(f"nncf {_VERSION} is installed; ilwp works with nncf 2.19 and 3.x")


def methods() -> Mapping[str, Method]:
    """NNCF's own compression as methods of `ilwp compare`, by name.

    Raises:
        MissingDependencyError: NNCF 2 is installed, which has not all of them.
    """
    if _VERSION.startswith("2."):
        raise MissingDependencyError(
            f"nncf {_VERSION} is installed; comparisons need NNCF 3 (pip install 'ilwp-plugin[nncf]')"
        )
    from .baselines import METHODS

    return METHODS
