"""Weights on a uniform grid: codes times one step."""

from __future__ import annotations

import torch
from torch import Tensor

from ilwp_plugin.format.integers import LARGEST_CODE
from ilwp_plugin.method.rounding import check_step, dead_zone_rounding

__all__ = ["LARGEST_CODE", "check_codes", "grid_codes", "restore_codes"]


def grid_codes(weight: Tensor, step: float, dead_zone: float = 0.5, largest: int | None = None) -> Tensor:
    """The nearest codes on a grid with one absolute step.

    Args:
        weight: any shape, floating-point, finite.
        step: distance of two levels, in units of weight; larger than 0.
        dead_zone: what is smaller than this many steps becomes 0; 0.5 is plain rounding.
        largest: what lies beyond this code is cut to it; None cuts nothing.

    Returns:
        Whole numbers in float32, in the weight's shape and on its device.

    Raises:
        StepError: a weight lies beyond the 32,767th level.
    """
    scale = torch.tensor(step, dtype=torch.float32)
    values = weight.detach().float()
    check_step(values, float(scale), LARGEST_CODE)
    return dead_zone_rounding(dead_zone, largest)(values / scale.to(values.device))


def check_codes(codes: Tensor, step: float) -> None:
    """Raises StepError where a code lies beyond the 32,767th level, as error feedback may have it."""
    scale = float(torch.tensor(step, dtype=torch.float32))
    check_step(codes.double() * scale, scale, LARGEST_CODE)


def restore_codes(codes: Tensor, step: float) -> Tensor:
    """`codes * step` in float32, bit for bit what a file restores."""
    return codes.float() * torch.tensor(step, dtype=torch.float32).to(codes.device)
