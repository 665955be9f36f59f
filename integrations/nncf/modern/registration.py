"""Make NNCF 3 know ilwp."""

from __future__ import annotations

import nncf
import nncf.torch
from nncf.torch import model_graph_manager

from .config import NNCFConfig, register_default_init_args
from .creation import create_compressed_model
from .hooks import ilwp_weight

__all__ = ["register"]


def register() -> None:
    """Tell NNCF's graph of ilwp's operation, and add the names of NNCF 2 that scripts with a JSON config import.

    These are `nncf.NNCFConfig`, `nncf.torch.create_compressed_model` and `nncf.torch.register_default_init_args`. A
    second call does nothing.
    """
    # Else nncf.prune and nncf.quantize do not see the parameter behind it, and leave the layer out without a word.
    kinds = model_graph_manager.AVAILABLE_NODE_TYPES_FOR_WEIGHT_SUBGRAPH
    if ilwp_weight.__name__ not in kinds:
        kinds.append(ilwp_weight.__name__)
    for module, name, value in (
        (nncf, "NNCFConfig", NNCFConfig),
        (nncf.torch, "create_compressed_model", create_compressed_model),
        (nncf.torch, "register_default_init_args", register_default_init_args),
    ):
        if not hasattr(module, name):
            setattr(module, name, value)
