"""Function-preserving alignment of a model's depthwise layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ilwp_plugin import IlwpConfig
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.pipeline.alignment import AlignmentReport, align_model

from .coupling import Coupling

__all__ = ["align"]


def align(
    model: nn.Module,
    example_inputs: Any,
    config: IlwpConfig | None = None,
    *,
    importance: Callable[..., Tensor | None] | None = None,
) -> AlignmentReport:
    """Permute, flip and scale channels in place so that collocated prediction fits; the function stays the same.

    Then train, fine-tune or `compress` the model as it is.

    Args:
        model: a float32 model on the CPU.
        example_inputs: a tensor, or a tuple or dict of arguments; the probe by which each layer is verified.
        config: see `ilwp_plugin.pipeline.alignment.align_model`.
        importance: see `Coupling`; for a model that is to be pruned later.

    Returns:
        What was aligned and what was refused, with the reasons.
    """
    return align_model(unwrap(model), example_inputs, partial(Coupling, importance=importance), config)
