"""What the codes of a layer cost, as a smooth function of its weights: for training with a rate term.

Codes are modelled by the share of zeros, and by a geometric distribution of the magnitudes of the others with equal
signs. That has two numbers a layer, follows sparse layers as well as dense ones (a Laplace distribution does not), and
its slope is the same for all codes that are not zero: a raw histogram's slopes are too rough to train with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CodeModel"]

_LEAST = 1e-4
"""Shares are at least this: a model that has seen no zero must still be able to pull towards one."""


@dataclass(frozen=True)
class CodeModel:
    """A layer's codes.

    Attributes:
        zeros: share of codes that are 0.
        ratio: of the number of codes of one magnitude and of the magnitude below, from 1 on.
    """

    zeros: float
    ratio: float

    @classmethod
    def fit(cls, codes: Tensor) -> CodeModel:
        """The likeliest model of some codes: whole numbers in any dtype and shape, at least one."""
        magnitudes = codes.detach().abs().double()
        count = magnitudes.numel()
        others = int((magnitudes > 0).sum())
        zeros = min(max(1 - others / count, _LEAST), 1 - _LEAST)
        mean = float(magnitudes.sum()) / others if others else 1.0
        return cls(zeros, min(max(1 - 1 / mean, _LEAST), 1 - _LEAST))

    @property
    def slope(self) -> float:
        """Bits that a step away from zero costs, from magnitude 1 on."""
        return -math.log2(self.ratio)

    @property
    def first(self) -> float:
        """Bits of a code of magnitude 1, sign included."""
        return -math.log2((1 - self.zeros) * (1 - self.ratio) / 2)

    def bits(self, levels: Tensor) -> Tensor:
        """Bits of all weights, a scalar in float32.

        The value is that of the nearest codes. The gradient is the slope, for weights outside the cell of zero; within
        it nothing pulls.

        Args:
            levels: weights in units of the step, any shape.
        """
        codes = torch.round(levels.detach()).abs()
        used = codes > 0
        exact = torch.where(used, self.first + self.slope * (codes - 1), -math.log2(self.zeros)).sum()
        pull = self.slope * torch.where(used, levels.abs(), 0.0).sum()
        return exact.detach() + pull - pull.detach()
