"""One step for each layer, so that a bit more or less costs the same everywhere (reverse water-filling)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["LARGEST_OF_SIZE", "SPREAD", "allocate_steps", "safe_step"]

SPREAD = 4.0
"""The largest factor between a step and the given one: what is measured on some inputs is not worth more."""

LARGEST_OF_SIZE = 4.0
"""The largest step in units of the root mean square of a layer's weights: beyond it whole outputs become 0, which costs
far more than errors that are small and white."""


def allocate_steps(
    step: float, errors: Mapping[str, float], weights: Mapping[str, int], sizes: Mapping[str, float]
) -> dict[str, float]:
    """Steps whose squares are inverse to what an error of a weight costs.

    At high rates a weight of step s has the squared error s^2 / 12, and a bit halves s. With h the cost of a squared
    error in one weight of a layer, the sum of costs at a given number of bits is least where h s^2 is the same for all.

    Args:
        step: geometric mean of all weights' steps, up to the limits of SPREAD; larger than 0.
        errors: cost of errors of one size in all weights of a layer, by layer; >= 0.
        weights: how many it has, >= 1, likewise.
        sizes: their root mean square, likewise; no step is larger than LARGEST_OF_SIZE of it where that is not 0.

    Returns:
        Steps by layer, otherwise within SPREAD of `step`; that itself for layers whose errors cost nothing.
    """
    costs = {name: error / weights[name] for name, error in errors.items() if error > 0}
    total = sum(weights[name] for name in costs)
    mean = sum(weights[name] * math.log(cost) for name, cost in costs.items()) / total if costs else 0.0
    limit = math.log(SPREAD)
    logs = {name: (mean - math.log(costs[name])) / 2 if name in costs else 0.0 for name in errors}
    steps = {name: step * math.exp(min(limit, max(-limit, value))) for name, value in logs.items()}
    return {name: min(value, LARGEST_OF_SIZE * sizes[name] or value) for name, value in steps.items()}


def safe_step(weight: Tensor) -> float:
    """The step of a uniform grid that loses no more than 8-bit integers with a scale for each output.

    Such integers put the largest magnitude of an output at 127. The grid has their squared error over all weights, and
    takes fewer bits: its codes are not limited to 8 bits, and what is entropy-coded costs little where it is rare.
    Where a few outputs have far larger weights than the others, the step follows the others: relative to the size of
    each output's own weights, the mean squared error is at most RELATIVE of that of the integers.

    Args:
        weight: floating-point, outputs first.

    Returns:
        The step, in units of weight; 0 where all is 0, or where not all is finite in float32.
    """
    rows = weight.detach().reshape(len(weight), -1)
    if not rows.numel():
        return 0.0
    largest = _by_rows(rows, lambda part: part.abs().amax(dim=1))
    used = largest != 0
    if not bool(used.any()) or not bool(largest.isfinite().all()):
        return 0.0
    rows, largest = (rows, largest) if bool(used.all()) else (rows[used], largest[used])
    scales = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    powers = _by_rows(rows, lambda part: part.double().square().mean(dim=1))
    powers = powers.clamp(min=_DEAD * float(powers.mean()))
    errors = _errors(rows, scales)
    allowed, relative = float(errors.mean()), float((errors / powers).mean())
    step = _MARGIN * min(math.sqrt(12 * allowed), math.sqrt(12 * RELATIVE * relative / float((1 / powers).mean())))
    for _ in range(_REFINEMENTS):
        found = float(_errors(rows, torch.full_like(scales, step)).mean()) if step else 0.0
        if found <= allowed:
            break
        step *= _MARGIN * math.sqrt(allowed / found)
    return max(step, float(largest.max()) / _LARGEST_CODE, _SMALLEST)


RELATIVE = 6.0
"""See `safe_step`. Batch norms even out the sizes of outputs, so that errors count relative to them."""

_DEAD = 1e-3
"""Of the mean square of a layer: outputs below it are next to nothing, and are not to set the step of the others."""

_REFINEMENTS = 8
_LARGEST_CODE = 4096
"""Weights that 8-bit integers happen to hold exactly, all alike for example, would ask for any finer step."""
_SMALLEST = torch.finfo(torch.float32).smallest_normal
"""A step is a float32."""
_MARGIN = 0.99
"""Residuals of a chain are rounded in other places than the weights themselves."""


_PIECE = 1 << 18
"""Values that are computed at one time: a layer may be larger than what is left of memory."""


def _by_rows(rows: Tensor, compute: Callable[..., Tensor], *others: Tensor) -> Tensor:
    """What a function of rows in float32 gives for each, computed for some at a time."""
    if rows.numel() <= _PIECE:
        return compute(rows.float(), *others)
    count = max(1, _PIECE // rows.shape[1])
    parts = zip(*(torch.split(each, count) for each in (rows, *others)), strict=True)
    return torch.cat([compute(part.float(), *more) for part, *more in parts])


def _errors(rows: Tensor, scales: Tensor) -> Tensor:
    """(outputs,): mean squared error of rounding with a step each."""

    def of(part: Tensor, own: Tensor) -> Tensor:
        step = own[:, None]
        return (part - torch.round(part / step) * step).double().square().mean(dim=1)

    return _by_rows(rows, of, scales)
