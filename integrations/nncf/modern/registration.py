"""Make NNCF 3 know ilwp."""

from __future__ import annotations

import copy
import functools
from typing import Any

import nncf
import nncf.common.strip
from nncf.torch import model_graph_manager
from torch import nn

from ilwp_plugin.errors import ConfigError

from .hooks import ilwp_weight, weight_hooks
from .names import add_names
from .stripping import strip

__all__ = ["register"]


def register() -> None:
    """Tell NNCF's graph of ilwp's operation, let `nncf.strip` strip it, and add the names that NNCF 2's scripts import.

    A second call does nothing.
    """
    # Else nncf.prune and nncf.quantize do not see the parameter behind it, and leave the layer out without a word.
    kinds = model_graph_manager.AVAILABLE_NODE_TYPES_FOR_WEIGHT_SUBGRAPH
    if ilwp_weight.__name__ not in kinds:
        kinds.append(ilwp_weight.__name__)
        nncf.strip = nncf.common.strip.strip = _stripping(nncf.strip)
    add_names()


def _stripping(original: Any) -> Any:
    """NNCF's own function would leave hooks of ilwp in the model, without a word."""

    @functools.wraps(original)
    def stripped(
        model: Any,
        do_copy: bool = True,
        strip_format: nncf.StripFormat = nncf.StripFormat.NATIVE,
        example_input: Any = None,
    ) -> Any:
        if not isinstance(model, nn.Module) or not weight_hooks(model):
            return original(model, do_copy=do_copy, strip_format=strip_format, example_input=example_input)
        if strip_format != nncf.StripFormat.NATIVE:
            raise ConfigError(f"a model with ilwp is stripped in the native format, not in {strip_format}")
        return strip(copy.deepcopy(model) if do_copy else model, example_input)

    return stripped
