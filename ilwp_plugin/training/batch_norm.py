"""Batch-norm statistics of the weights that a model ends up with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ilwp_plugin.errors import TrainingError
from ilwp_plugin.models.chains import evaluating

__all__ = ["reestimate_batch_norms"]


@torch.no_grad()
def reestimate_batch_norms(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object]
) -> int:
    """Replace the running statistics of all batch norms by the mean over some batches.

    Running averages lag behind the weights, and most so where quantization begins late. Everything but the batch norms
    is in eval mode meanwhile; each module's mode is put back.

    Args:
        model: the model.
        batches: training data.
        forward: computes the model on one batch.

    Returns:
        How many batch norms have new statistics; 0 where the model has none that keep any.

    Raises:
        TrainingError: no batch.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean over all batches
                norm.train()
            for batch in batches:
                forward(model, batch)
                seen += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if seen == 0:
        raise TrainingError("no batch to estimate the batch-norm statistics from")
    return len(norms)
