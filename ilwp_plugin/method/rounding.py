"""How levels (weights in units of the step) become codes: to the nearest, with a dead zone, or with rates in mind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Rounding", "dead_zone_rounding", "rate_rounding"]

Rounding = Callable[[Tensor], Tensor]
"""Levels, any shape, to whole numbers of the same dtype; elementwise."""

_CANDIDATES = 2
"""Codes that are tried towards zero, besides zero itself."""


def dead_zone_rounding(dead_zone: float, largest: int) -> Rounding:
    """To the nearest code of at most `largest` in magnitude, but 0 for levels smaller than the dead zone."""

    def rounding(levels: Tensor) -> Tensor:
        # Adding 0.0 turns the negative zeros of rounding into zeros, so that equal codes are equal bits.
        return torch.where(levels.abs() < dead_zone, 0.0, torch.round(levels)).clamp(-largest, largest) + 0.0

    return rounding


def rate_rounding(levels: Tensor, weight: float, largest: int) -> Rounding:
    """To the code with the least squared error plus `weight` times its bits (rate-distortion optimised quantization).

    Args:
        levels: of the layer; the histogram of their nearest codes sets the bits of each code.
        weight: squared steps that a bit is worth.
        largest: codes are at most this in magnitude.
    """
    nearest = dead_zone_rounding(0.5, largest)
    counts = torch.bincount(nearest(levels).abs().long().flatten(), minlength=largest + 1).double()
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
            total = (magnitude - code).square() + cost[code.long()].to(values.dtype)
            best = torch.where(total < least, code, best)
            least = torch.minimum(total, least)
        return best * values.sign() + 0.0

    return rounding
