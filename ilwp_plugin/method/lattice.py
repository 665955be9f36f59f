"""Dithered lattice quantization (Ziv 1985; Choi, El-Khamy, Lee 2018, "Universal deep neural network compression").

A value v, in steps, becomes the code n of the nearest point n - u of a lattice that a dither u has moved. What is left
is then uniform noise that does not depend on the values, however these are distributed. Code 0 is the value 0 without
dither: what is pruned stays 0, and a value that is nearly 0 costs no noise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ilwp_plugin.format.dither import dither
from ilwp_plugin.format.integers import LARGEST_CODE
from ilwp_plugin.method.entropy_constrained import ideal_bits
from ilwp_plugin.method.rounding import check_step

__all__ = ["dither_of", "lattice_codes", "lattice_values"]

_PASSES = 2
"""From one histogram to the next, where bits count."""


def dither_of(seed: int, stream: int, like: Tensor) -> Tensor:
    """The dither of a tensor, in its shape and on its device; float32, -1/2 to below 1/2."""
    drawn = dither(seed, stream, 0, like.numel())
    return torch.from_numpy(drawn).reshape(like.shape).to(like.device)


def lattice_codes(weight: Tensor, step: float, moved: Tensor, rate: float = 0.0) -> Tensor:
    """Codes with the least squared error plus `rate` times their bits.

    Args:
        weight: any shape, finite.
        step: in units of weight, larger than 0.
        moved: the dither, in the weight's shape.
        rate: squared steps that a bit is worth.

    Returns:
        int64 in the weight's shape; exactly 0 where the weight is.

    Raises:
        StepError: a weight lies beyond the 32,767th level.
    """
    scale = torch.tensor(step, dtype=torch.float32)
    values = weight.detach().float()
    check_step(values, float(scale), LARGEST_CODE - 1)
    levels = values / scale.to(values.device)
    codes = _cheapest(levels, moved, None, 0.0)
    for _ in range(_PASSES if rate else 0):
        low = int(codes.min())
        counts = torch.bincount((codes - low).flatten())
        codes = _cheapest(levels, moved, (low, ideal_bits(counts).float().to(levels.device)), rate)
    return codes


def _cheapest(levels: Tensor, moved: Tensor, bits: tuple[int, Tensor] | None, rate: float) -> Tensor:
    nearest = torch.round(levels + moved).long()
    best = torch.zeros_like(nearest)
    least = levels.square() + _cost(best, bits, rate)
    for offset in (0, -1, 1):
        code = nearest + offset
        cost = (levels - (code - moved)).square() + _cost(code, bits, rate)
        better = (cost < least) & (code != 0)
        best, least = torch.where(better, code, best), torch.where(better, cost, least)
    return torch.where(levels == 0, 0, best)


def _cost(codes: Tensor, bits: tuple[int, Tensor] | None, rate: float) -> Tensor | float:
    if bits is None:
        return 0.0
    low, table = bits
    places = codes - low
    known = (places >= 0) & (places < len(table))
    # A code that nobody has had yet is as rare as one that a single value has.
    return rate * torch.where(known, table[places.clamp(0, len(table) - 1)], table.max())


def lattice_values(codes: Tensor, step: float, moved: Tensor, levels: Tensor | None = None, lowest: int = 0) -> Tensor:
    """What a file restores codes to, bit for bit: float32 in their shape.

    Args:
        codes: integers.
        step: in units of value.
        moved: the dither, in the codes' shape.
        levels: (n,) float32 of the codes from `lowest` on; None for the codes themselves.
        lowest: see there.
    """
    own = codes.float()
    if levels is not None:
        own = levels.to(codes.device)[torch.where(codes == 0, 0, codes - lowest)]
    scale = torch.tensor(step, dtype=torch.float32).to(codes.device)
    return torch.where(codes == 0, 0.0, (own - moved) * scale + 0.0)


def as_array(codes: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Codes as a section holds them."""
    return codes.cpu().numpy().astype(np.int16)
