"""Batch norms as they act at inference: one scale and one shift a channel instead of four numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MANTISSA_BITS", "OCTAVES", "ROLES", "MergedBatchNorm"]

MANTISSA_BITS = range(1, 13)
"""Bits that the mantissa of a merged scale may have."""
OCTAVES = 24
"""Scales smaller than the largest of their layer by 2^24 or more become 0."""

ROLES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""The tensors of a batch norm in the state dict; the last one may be missing."""


@dataclass(frozen=True, eq=False)
class MergedBatchNorm:
    """A batch norm whose scale and shift are codes.

    Attributes:
        scale_codes: (channels,) integers. 0 is 0; +-(1 + (e << m | f)) is +-(2^m + f) * 2^(e - m + exponent).
        shift_codes: (channels,) integers, in units of `shift_step`.
        exponent: of the smallest scale.
        mantissa: m, bits of a scale's mantissa.
        shift_step: float32 value >= 0.
        eps: of the module, a float32 value.
    """

    scale_codes: NDArray[Any]
    shift_codes: NDArray[Any]
    exponent: int
    mantissa: int
    shift_step: float
    eps: float

    @property
    def scale(self) -> NDArray[np.float32]:
        """(channels,) float32."""
        codes = self.scale_codes.astype(np.int64)
        magnitude = np.maximum(np.abs(codes) - 1, 0)
        fraction = (1 << self.mantissa) + (magnitude & ((1 << self.mantissa) - 1))
        exponent = (magnitude >> self.mantissa) + self.exponent - self.mantissa
        with np.errstate(over="ignore"):
            values: NDArray[np.float64] = np.sign(codes) * np.ldexp(fraction.astype(np.float64), exponent)
            return values.astype(np.float32)

    @property
    def shift(self) -> NDArray[np.float32]:
        """(channels,) float32."""
        with np.errstate(over="ignore"):
            result: NDArray[np.float32] = self.shift_codes.astype(np.float32) * np.float32(self.shift_step)
        return result

    def restore(self) -> dict[str, NDArray[Any]]:
        """The buffers and parameters of a module of the same class that computes `scale * x + shift` in eval mode."""
        scale = self.scale
        return {
            "weight": scale,
            "bias": self.shift,
            "running_mean": np.zeros_like(scale),
            "running_var": np.full_like(scale, np.float32(1) - np.float32(self.eps)),
            "num_batches_tracked": np.array(0, np.int64),
        }
