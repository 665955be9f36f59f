"""The quantization of one layer of a chain under a configuration: one code for files and for training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ilwp_plugin.errors import StepError
from ilwp_plugin.format.coding import Histogram, Symbols
from ilwp_plugin.format.sections.chain import storage_mode
from ilwp_plugin.method.prediction import PREDICTORS, gather_references
from ilwp_plugin.method.quantization import (
    CODE_BITS,
    STEP_RULES,
    KernelPool,
    QuantizedLayer,
    bits_for,
    keep_zeros,
    largest_code,
    reconstruct,
)
from ilwp_plugin.method.rounding import Rounding, check_step, dead_zone_rounding, rate_rounding

__all__ = ["quantize_layer"]

Feedback = Callable[[Tensor, float, Rounding], Tensor]
"""(reference of each kernel, step, rounding) -> codes: rounding that knows what earlier errors did to the outputs."""

_BIT_WORTH = math.log(2) / 6
"""What a bit is worth, in squared steps: the error of a uniform quantizer is step^2 / 12, and a bit halves the step."""

_EXACT_BITS = 4
"""Leading bits of a code that an entropy tells apart; what follows them is as good as noise."""


def quantize_layer(
    kernels: Tensor,
    pool: KernelPool,
    config: KernelOptions,
    references: Tensor | None = None,
    *,
    feedback: Feedback | None = None,
    searched: Callable[[int], None] | None = None,
) -> QuantizedLayer:
    """Quantize a layer under its mode, or under the one that is best at the same step.

    Weights that are exactly 0, as masks of pruning leave them, stay exactly 0. A step of the layer's own range cuts
    codes to the bits of the configuration: 'max' leaves nothing to cut, but error feedback may ask for more. Where the
    step is given, by `residual_step` or under mode 'auto', nothing is cut: the codes have as many bits as they need.

    Args:
        kernels: (kernels, taps) float32, finite.
        pool: the earlier layers as they are restored; empty for a first layer, which is predicted by zero.
        config: of this layer; `bits` is set.
        references: (kernels,) int64, given ones instead of the mode's; see `method.prediction`.
        feedback: rounds the residuals; each to the nearest code, or by `rate_weight`, if None.
        searched: is told the progress of a search.

    Raises:
        StepError: the step is so fine that no file holds the codes.
    """
    if not pool.layers:
        choices = [torch.full((len(kernels),), -1, dtype=torch.int64)]
    elif references is not None:
        choices = [references]
    else:
        modes = PREDICTORS if config.mode == "auto" else [config.mode]
        choices = [PREDICTORS[mode].references(kernels, pool.layers, searched) for mode in modes]
    if len(choices) == 1:
        return _round(kernels, choices[0], pool, config, feedback, None)
    # One step for all, that of the weights themselves. Where it cuts none of these, it cuts no residuals either.
    common = _step(kernels, config)
    if common.largest is not None and float(kernels.abs().max()) <= (common.largest + 0.5) * float(common.value):
        common = _Step(common.value, None)
    layers: list[QuantizedLayer] = []
    refusals: list[StepError] = []
    for choice in choices:
        try:
            layers.append(_round(kernels, choice, pool, config, feedback, common))
        except StepError as error:
            refusals.append(error)
    if not layers:
        raise min(refusals, key=lambda error: error.smallest)
    counts = [len(layer) for layer in pool.layers]
    worth = max(_BIT_WORTH, config.rate_weight)
    return min(layers, key=lambda layer: _cost(layer, kernels, pool, counts, worth))


class KernelOptions(Protocol):
    """The options that matter here, of `recipes.ilwp.IlwpOptions`."""

    @property
    def mode(self) -> str: ...
    @property
    def bits(self) -> int | None: ...
    @property
    def range(self) -> str: ...
    @property
    def residual_step(self) -> float | str | None: ...
    @property
    def rate_weight(self) -> float: ...


@dataclass(frozen=True, eq=False)
class _Step:
    """A step, a float32 scalar, and the code that larger ones are cut to; None cuts nothing."""

    value: Tensor
    largest: int | None


def _cost(layer: QuantizedLayer, kernels: Tensor, pool: KernelPool, counts: list[int], worth: float) -> float:
    """Squared error and bits in one number; `worth` are the squared steps that a bit is worth."""
    error = float((kernels - reconstruct(layer, pool.filled)).double().square().sum())
    return error + worth * layer.step**2 * _bits(layer, counts)


def _bits(layer: QuantizedLayer, counts: list[int]) -> float:
    """About what a layer takes: its codes, and the entropy of its references where they are stored."""
    stored = storage_mode(layer.references.cpu().numpy(), counts) in ("local", "full")
    indices = Histogram.of(layer.references.cpu().numpy()).entropy if stored else 0.0
    return _code_bits(layer.codes.cpu().numpy()) + indices * len(layer.codes)


def _code_bits(codes: Symbols) -> float:
    """The entropy of the leading bits of codes, and the bits that follow them.

    The plain entropy of a layer is at most the logarithm of its number of weights, however large the codes are.
    """
    magnitude = np.abs(codes.astype(np.int64))
    following = np.maximum(np.frexp(magnitude.astype(np.float64))[1] - _EXACT_BITS, 0)
    leading = np.sign(codes) * ((following << _EXACT_BITS) + (magnitude >> following))
    return Histogram.of(leading).entropy * codes.size + float(following.sum())


def _round(
    kernels: Tensor,
    references: Tensor,
    pool: KernelPool,
    config: KernelOptions,
    feedback: Feedback | None,
    common: _Step | None,
) -> QuantizedLayer:
    """The layer at a given step, or at that of its residuals."""
    assert config.bits is not None
    references, zeros = keep_zeros(kernels, references)
    reference = gather_references(pool.filled, references)
    residual = kernels - reference
    if zeros is not None:
        residual = residual.masked_fill(zeros, 0.0)
    step = _step(residual, config) if common is None else common
    size, largest = float(step.value), largest_code(CODE_BITS[-1])
    if step.largest is None:
        check_step(residual, size, largest)
    if not size > 0:
        codes = torch.zeros_like(residual)
    else:
        rounding = dead_zone_rounding(0.5, step.largest)
        if config.rate_weight > 0:
            rounding = rate_rounding(residual / step.value, config.rate_weight, step.largest)
        codes = rounding(residual / step.value) if feedback is None else feedback(reference, size, rounding)
        check_step(codes.double() * size, size, largest)
    codes = codes.reshape(residual.shape).to(torch.int16)
    if zeros is not None:
        codes = codes.masked_fill(zeros, 0)
    return QuantizedLayer(codes, size, bits_for(codes) if step.largest is None else config.bits, references, zeros)


def _step(residual: Tensor, config: KernelOptions) -> _Step:
    """The step of a layer."""
    if isinstance(config.residual_step, float):
        return _Step(torch.tensor(config.residual_step, dtype=torch.float32, device=residual.device), None)
    assert config.bits is not None
    largest = largest_code(config.bits)
    return _Step(STEP_RULES[config.range](residual, largest), largest)
