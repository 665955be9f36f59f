"""Dither: numbers that encoder and decoder draw alike from a seed that the file holds.

Generator 1 is SplitMix64 (Steele, Lea, Flood 2014) as a function of a counter, so that any part of a tensor can be
drawn alone. It is whole numbers only, and its floating-point result is exact: the same bits on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["GENERATORS", "dither"]

GENERATORS = {1: "splitmix64"}
"""Numbers in the file, and names."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64, modulo 2^64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def dither(seed: int, stream: int, start: int, count: int) -> NDArray[np.float32]:
    """Uniform numbers.

    Args:
        seed: below 2^64.
        stream: below 2^63; those of other numbers are independent.
        start: place of the first number in the stream, from 0.
        count: how many.

    Returns:
        (count,) float32, multiples of 2^-24 from -1/2 to below 1/2.

    >>> dither(0, 0, 0, 3).tolist() == dither(0, 0, 1, 2).tolist()[-2:]
    False
    >>> dither(7, 1, 5, 2).tolist() == dither(7, 1, 0, 7).tolist()[5:]
    True
    """
    first = np.array([(seed + (stream + 1) * _GOLDEN) & _MASK], np.uint64)
    places = np.arange(start + 1, start + 1 + count, dtype=np.uint64)
    drawn = _mixed(_mixed(first) + places * np.uint64(_GOLDEN)) >> np.uint64(40)
    return (drawn.astype(np.float32) * np.float32(2.0**-24) - np.float32(0.5)).astype(np.float32)
