"""What the codes of a layer cost, as a smooth function of its weights: for training with a rate term.

Codes are modelled by the share of zeros, and by a geometric distribution of the magnitudes of the others with equal
signs. That has two numbers a layer, follows sparse layers as well as dense ones (a Laplace distribution does not), and
has two slopes, below and above magnitude 1: those of a raw histogram are too rough to train with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["CodeModel", "CodeModels", "entropy_bits"]

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

    @property
    def jump(self) -> float:
        """Bits that magnitude 1 costs more than 0; at least 0."""
        return max(self.first + math.log2(self.zeros), 0.0)

    def bits(self, levels: Tensor) -> Tensor:
        """Bits of all weights, a scalar in float32.

        The value is that of the nearest codes. The gradient is that of a line between the bits of each code and the
        next, so that a weight below 1 is pulled by all that a zero saves.

        Args:
            levels: weights in units of the step, any shape.
        """
        codes = torch.round(levels.detach()).abs()
        exact = torch.where(codes > 0, self.first + self.slope * (codes - 1), -math.log2(self.zeros)).sum()
        magnitudes = levels.abs()
        pull = torch.where(magnitudes < 1, self.jump, self.slope).detach().to(magnitudes) * magnitudes
        return exact.detach() + pull.sum() - pull.sum().detach()


REFIT_STEPS = 25
"""Steps of training between two fits."""


class CodeModels:
    """Models of many layers, fitted to the codes again and again while they train."""

    def __init__(self) -> None:
        self._models: dict[str, CodeModel] = {}
        self._steps = 0

    def bits(self, levels: Mapping[str, Tensor]) -> Tensor:
        """Bits of all weights, a float32 scalar with gradient.

        Args:
            levels: by layer, weights in units of the step, any shape.
        """
        total = torch.zeros(())
        for key, own in levels.items():
            if key not in self._models:
                self._models[key] = CodeModel.fit(torch.round(own.detach()))
            total = total.to(own.device) + self._models[key].bits(own)
        return total

    def after_step(self) -> None:
        """The optimizer has made a step."""
        self._steps += 1
        if self._steps % REFIT_STEPS == 0:
            self._models = {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        models = {key: [model.zeros, model.ratio] for key, model in self._models.items()}
        return {"models": models, "steps": self._steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._models = {key: CodeModel(*values) for key, values in state["models"].items()}
        self._steps = int(state["steps"])


@torch.no_grad()
def entropy_bits(levels: Tensor) -> float:
    """Bits that the nearest codes take by their own histogram, as a file codes them.

    Args:
        levels: weights in units of the step, any shape, at least one.
    """
    codes = torch.round(levels).flatten().long()
    least, most = int(codes.min()), int(codes.max())
    counts = torch.unique(codes, return_counts=True)[1] if most - least > _MANY else torch.bincount(codes - least)
    counts = counts[counts > 0].double()
    return float((counts * (math.log2(codes.numel()) - torch.log2(counts))).sum())


_MANY = 1 << 16
"""Codes far apart are sorted, not counted each."""
