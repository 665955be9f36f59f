"""Weights on a uniform grid: codes times one step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilwp_plugin.format.integers import LARGEST_CODE
from ilwp_plugin.method.rounding import check_step, dead_zone_rounding

__all__ = ["LARGEST_CODE", "check_codes", "grid_codes", "grid_integers", "pieces", "restore_codes"]

_PIECE = 1 << 18
"""Values that are computed at one time."""


def pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Its values, flat, so many at a time that what is computed of them takes little memory."""
    return torch.split(tensor.reshape(-1), _PIECE)


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


def grid_integers(
    weight: Tensor, step: float, dead_zone: float = 0.5, largest: int | None = None
) -> tuple[NDArray[np.int16], Tensor]:
    """The same codes as integers, and what they restore to, in little memory beside both.

    Args:
        weight: floating-point, any shape.
        step: in units of weight.
        dead_zone: in steps, see `grid_codes`.
        largest: magnitude of the largest code; None for what a file holds.

    Returns:
        int16 in the weight's shape; float32 in the same shape, on the weight's device.

    Raises:
        StepError: see `grid_codes`.
    """
    highest = [float(piece.abs().max()) for piece in pieces(weight.detach()) if piece.numel()]
    scale = float(torch.tensor(step, dtype=torch.float32))
    check_step(torch.tensor(max(highest, default=0.0), dtype=torch.float64), scale, LARGEST_CODE)
    codes = np.empty(weight.numel(), np.int16)
    restored = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    parts = zip(pieces(weight.detach()), pieces(torch.from_numpy(codes)), pieces(restored), strict=True)
    for own, place, back in parts:
        found = grid_codes(own, step, dead_zone, largest)
        place.copy_(found)
        back.copy_(restore_codes(found, step))
    return codes.reshape(tuple(weight.shape)), restored


def check_codes(codes: Tensor, step: float) -> None:
    """Raises StepError where a code lies beyond the 32,767th level, as error feedback may have it."""
    scale = float(torch.tensor(step, dtype=torch.float32))
    check_step(codes.double() * scale, scale, LARGEST_CODE)


def restore_codes(codes: Tensor, step: float) -> Tensor:
    """`codes * step` in float32, bit for bit what a file restores."""
    return codes.float() * torch.tensor(step, dtype=torch.float32).to(codes.device)
