"""The layers of a chain, and how a kernel is restored from its code, its step and the kernel that predicts it.

A chain's kernels are numbered in order: layer 1's first, then layer 2's, and so on. References are such numbers, always
of an earlier layer, or -1 for none (the kernel is then predicted by zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BITS", "KernelPool", "QuantizedLayer", "collocated_references", "largest_code", "reconstruct"]

_ROWS = 1 << 12
"""Kernels that are computed at one time."""

BITS = range(2, 16)
"""Bit widths of codes in a chain; the paper has 2 to 8."""


def largest_code(bits: int) -> int:
    """Codes of `bits` bits run from minus this to plus this; zero is a level, and the grid is symmetric."""
    return (1 << (bits - 1)) - 1


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """One predicted layer.

    Attributes:
        codes: (kernels, taps) int16, of magnitude at most `largest_code(bits)`.
        step: float32 value >= 0, in units of weight.
        bits: 2..15.
        references: (kernels,) int64 kernel numbers, or -1.
        zeros: (kernels, taps) bool, weights that are exactly 0, whatever predicts them; their codes are 0. Or None.
    """

    codes: NDArray[np.int16]
    step: float
    bits: int
    references: NDArray[np.int64]
    zeros: NDArray[np.bool_] | None = None


def reconstruct(
    layer: QuantizedLayer, pool: NDArray[np.float32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """`Khat = codes * step + reference`, or 0 where the layer says so; one operation after the other, in float32.

    Args:
        layer: the quantized layer.
        pool: (m, taps) float32, the reconstructed kernels of all earlier layers, in order.
        out: (kernels, taps) float32, to be filled.

    Returns:
        (kernels, taps) float32.
    """
    restored = np.empty(layer.codes.shape, np.float32) if out is None else out
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(restored), _ROWS):
            rows = slice(start, start + _ROWS)
            part, references = layer.codes[rows].astype(np.float32), layer.references[rows]
            part *= np.float32(layer.step)
            predicted = references >= 0
            if predicted.any():
                part += np.where(predicted[:, None], pool[np.maximum(references, 0)], np.float32(0))
            else:
                part += np.float32(0)
            if layer.zeros is not None:
                part[layer.zeros[rows]] = 0
            restored[rows] = part
    return restored


class KernelPool:
    """The reconstructed kernels of a chain, as it grows: one array, so that long chains are not copied each time."""

    def __init__(self, kernels: int, taps: int) -> None:
        self._all = np.empty((kernels, taps), np.float32)
        self._filled = 0
        self.layers: list[NDArray[np.float32]] = []
        """(kernels, taps) of each layer so far."""

    def append(self, layer: QuantizedLayer | NDArray[np.float32]) -> None:
        """Add a layer, reconstructed if it is quantized."""
        start = self._filled
        self._filled += len(layer.codes) if isinstance(layer, QuantizedLayer) else len(layer)
        place = self._all[start : self._filled]
        if isinstance(layer, QuantizedLayer):
            reconstruct(layer, self._all[:start], place)
        else:
            place[:] = layer
        self.layers.append(place)


def collocated_references(kernels: int, earlier: Sequence[int]) -> NDArray[np.int64]:
    """Reference numbers of the rule `K[i, j] <- K[i-1, j mod c[i-1]]` (the paper's collocated kernel).

    Args:
        kernels: number of kernels of the layer.
        earlier: number of kernels of each earlier layer; at least one layer, none empty.

    Returns:
        (kernels,) int64.
    """
    result: NDArray[np.int64] = sum(earlier[:-1]) + np.arange(kernels, dtype=np.int64) % earlier[-1]
    return result
