"""How levels (weights in units of the step) become codes: to the nearest, with a dead zone, or with rates in mind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ilwp_plugin.errors import StepError

__all__ = ["Rounding", "check_step", "dead_zone_rounding", "naming", "rate_rounding"]

Rounding = Callable[[Tensor], Tensor]
"""Levels, any shape, to whole numbers of the same dtype; elementwise."""

_CANDIDATES = 2
"""Codes that are tried towards zero, besides zero itself."""


def check_step(values: Tensor, step: float, largest: int) -> None:
    """Raises StepError if values in units of a step lie beyond the largest code, so that they would be cut.

    Args:
        values: any shape, finite.
        step: >= 0, as a file holds it: float32.
        largest: the largest code.
    """
    highest = float(values.abs().max()) if values.numel() else 0.0
    if highest > (largest + 0.5) * step:
        # A step more leaves room for references, which differ by up to half a step at another step.
        smallest = _rounded_up(highest / (largest - 1))
        raise StepError(
            f"a step of {step:.3g} is too fine for values of up to {highest:.3g}: a file holds codes of at most "
            f"{largest:,}; the smallest step that does is {smallest:.3g}",
            smallest,
        )


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Says in a StepError from inside the `with` block what the step is too fine for."""
    try:
        yield
    except StepError as error:
        raise StepError(f"{what}: {error}", error.smallest) from None


def _rounded_up(value: float) -> float:
    """To three digits."""
    if not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit) * unit:.3g}")


def dead_zone_rounding(dead_zone: float, largest: int | None = None) -> Rounding:
    """To the nearest code, but 0 for levels smaller than the dead zone.

    Args:
        dead_zone: in steps, 0.5 to 1.
        largest: what lies beyond this code is cut to it; None cuts nothing.
    """

    def rounding(levels: Tensor) -> Tensor:
        codes = torch.where(levels.abs() < dead_zone, 0.0, torch.round(levels))
        # Adding 0.0 turns the negative zeros of rounding into zeros, so that equal codes are equal bits.
        return (codes if largest is None else codes.clamp(-largest, largest)) + 0.0

    return rounding


def rate_rounding(levels: Tensor, weight: float, largest: int | None = None) -> Rounding:
    """To the code with the least squared error plus `weight` times its bits (rate-distortion optimised quantization).

    Args:
        levels: of the layer; the histogram of their nearest codes sets the bits of each code.
        weight: squared steps that a bit is worth.
        largest: what lies beyond this code is cut to it; None cuts nothing.
    """
    nearest = dead_zone_rounding(0.5, largest)
    codes = nearest(levels).abs().long().flatten()
    # The last count, of a code that does not occur, is also that of all larger ones, which feedback may ask for.
    counts = torch.bincount(codes, minlength=int(codes.max()) + 2).double()
    # One count more for each code, so that a code that does not occur costs much but not infinitely much; a sign
    # costs a bit.
    bits = torch.log2(counts.sum() + len(counts)) - torch.log2(counts + 1)
    bits[1:] += 1
    cost = weight * bits

    def rounding(values: Tensor) -> Tensor:
        magnitude = values.abs()
        top = nearest(values).abs()
        best, least = torch.zeros_like(magnitude), magnitude.square() + cost[0].to(values.dtype)
        for less in range(_CANDIDATES):
            code = (top - less).clamp(min=0)
            total = (magnitude - code).square() + cost[code.long().clamp(max=len(cost) - 1)].to(values.dtype)
            best = torch.where(total < least, code, best)
            least = torch.minimum(total, least)
        return best * values.sign() + 0.0

    return rounding
