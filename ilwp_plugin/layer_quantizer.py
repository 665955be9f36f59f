"""The quantization of one layer of a chain under a configuration: one code for files and for training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ilwp_plugin.coding import AUTO, Histogram
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.method.prediction import PREDICTORS, gather_references
from ilwp_plugin.method.quantization import (
    BITS,
    STEP_RULES,
    KernelPool,
    QuantizedLayer,
    bits_for,
    keep_zeros,
    largest_code,
)
from ilwp_plugin.method.rounding import Rounding, dead_zone_rounding, rate_rounding
from ilwp_plugin.sections.chain import storage_mode

__all__ = ["quantize_layer"]

Feedback = Callable[[Tensor, float, Rounding], Tensor]
"""(reference of each kernel, step, rounding) -> codes: rounding that knows what earlier errors did to the outputs."""


def quantize_layer(
    kernels: Tensor,
    pool: KernelPool,
    config: IlwpConfig,
    references: Tensor | None = None,
    *,
    feedback: Feedback | None = None,
    searched: Callable[[int], None] | None = None,
) -> QuantizedLayer:
    """Quantize a layer under its mode, or under the one that takes the fewest bits at the same step.

    Weights that are exactly 0, as masks of pruning leave them, stay exactly 0.

    Args:
        kernels: (kernels, taps) float32, finite.
        pool: the earlier layers as they are restored; empty for a first layer, which is predicted by zero.
        config: of this layer; `bits` is set.
        references: (kernels,) int64, given ones instead of the mode's; see `method.prediction`.
        feedback: rounds the residuals; each to the nearest code, or by `rate_weight`, if None.
        searched: is told the progress of a search.
    """
    if not pool.layers:
        choices = [torch.full((len(kernels),), -1, dtype=torch.int64)]
    elif references is not None:
        choices = [references]
    else:
        modes = PREDICTORS if config.mode == AUTO else [config.mode]
        choices = [PREDICTORS[mode].references(kernels, pool.layers, searched) for mode in modes]
    if len(choices) == 1:
        return _round(kernels, choices[0], pool, config, feedback, None)
    # One step for all, that of the weights themselves: so their errors are equal, and their bits tell.
    step = _step(kernels, config)
    layers = [_round(kernels, choice, pool, config, feedback, step) for choice in choices]
    counts = [len(layer) for layer in pool.layers]
    return min(layers, key=lambda layer: _bits(layer, counts))


def _bits(layer: QuantizedLayer, counts: list[int]) -> float:
    """About what a layer takes: the entropy of its codes, and of its references where they are stored."""
    codes = layer.codes.cpu().numpy()
    stored = storage_mode(layer.references, counts) in ("local", "full")
    indices = Histogram.of(layer.references.cpu().numpy()).entropy if stored else 0.0
    return Histogram.of(codes).entropy * codes.size + indices * len(codes)


def _round(
    kernels: Tensor,
    references: Tensor,
    pool: KernelPool,
    config: IlwpConfig,
    feedback: Feedback | None,
    step: Tensor | None,
) -> QuantizedLayer:
    """The layer at a given step, or at that of its residuals."""
    assert config.bits is not None
    references, zeros = keep_zeros(kernels, references)
    reference = gather_references(pool.filled, references)
    residual = kernels - reference
    if zeros is not None:
        residual = residual.masked_fill(zeros, 0.0)
    fixed = step is not None or config.residual_step is not None
    largest = largest_code(BITS[-1] if fixed else config.bits)
    step = _step(residual, config) if step is None else step
    if not float(step) > 0:
        codes = torch.zeros_like(residual)
    else:
        rounding = dead_zone_rounding(0.5, largest)
        if config.rate_weight > 0:
            rounding = rate_rounding(residual / step, config.rate_weight, largest)
        codes = rounding(residual / step) if feedback is None else feedback(reference, float(step), rounding)
    codes = codes.reshape(residual.shape).to(torch.int16)
    if zeros is not None:
        codes = codes.masked_fill(zeros, 0)
    return QuantizedLayer(codes, float(step), bits_for(codes) if fixed else config.bits, references, zeros)


def _step(residual: Tensor, config: IlwpConfig) -> Tensor:
    """The step of a layer, a float32 scalar."""
    if config.residual_step is not None:
        return torch.tensor(config.residual_step, dtype=torch.float32, device=residual.device)
    assert config.bits is not None
    return STEP_RULES[config.range](residual, largest_code(config.bits))
