"""Compiled decoding, where numba is installed (the extra "fast"). It reads the same bytes, only sooner."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ans_decode", "available"]

_WORTH = 1 << 18
"""So many symbols make up for loading the compiler."""

_BUCKET_BITS = 12


def available(count: int) -> bool:
    """Whether compiled code is installed, and worth loading for so many symbols."""
    return count >= _WORTH and importlib.util.find_spec("numba") is not None


def ans_decode(
    words: list[NDArray[np.uint32]], sizes: list[int], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], bool]:
    """Decode four ANS streams side by side.

    Args:
        words: of each stream, the last one first to be read.
        sizes: number of symbols of each.
        starts: (slots + 1,) cumulated probabilities, the last one 2^24.

    Returns:
        The symbols, from 0, and whether every stream ended in the first state and with no word left.
    """
    buckets = np.searchsorted(starts, np.arange(1 << _BUCKET_BITS, dtype=np.int64) << (24 - _BUCKET_BITS), "right") - 1
    symbols = np.empty(sum(sizes), dtype=np.int64)
    ended = _compiled()(*words, np.array(sizes), starts.astype(np.uint64), buckets.astype(np.int32), symbols)
    return symbols, bool(ended)


@cache
def _compiled() -> Callable[..., Any]:
    import numba

    shift = np.uint64(24 - _BUCKET_BITS)
    mask = np.uint64((1 << 24) - 1)

    @numba.njit(inline="always")
    def begin(words: Any) -> Any:
        """The coder's state is its two highest words."""
        at, state = len(words), np.uint64(0)
        for _ in range(2):
            if at > 0:
                at -= 1
                state = state << np.uint64(32) | np.uint64(words[at])
        return state, at

    @numba.njit(inline="always")
    def step(state: Any, at: Any, words: Any, starts: Any, buckets: Any) -> Any:
        quantile = state & mask
        symbol = buckets[quantile >> shift]
        while starts[symbol + 1] <= quantile:
            symbol += 1
        left = starts[symbol]
        state = (state >> np.uint64(24)) * (starts[symbol + 1] - left) + quantile - left
        if state < np.uint64(1 << 32) and at > 0:
            at -= 1
            state = state << np.uint64(32) | np.uint64(words[at])
        return symbol, state, at

    @numba.njit(cache=True)
    def decode(w0: Any, w1: Any, w2: Any, w3: Any, sizes: Any, starts: Any, buckets: Any, out: Any) -> Any:
        s0, a0 = begin(w0)
        s1, a1 = begin(w1)
        s2, a2 = begin(w2)
        s3, a3 = begin(w3)
        o1 = sizes[0]
        o2 = o1 + sizes[1]
        o3 = o2 + sizes[2]
        for i in range(sizes[3]):  # the last stream is the shortest, by one symbol at most
            out[i], s0, a0 = step(s0, a0, w0, starts, buckets)
            out[o1 + i], s1, a1 = step(s1, a1, w1, starts, buckets)
            out[o2 + i], s2, a2 = step(s2, a2, w2, starts, buckets)
            out[o3 + i], s3, a3 = step(s3, a3, w3, starts, buckets)
        if sizes[0] > sizes[3]:
            out[sizes[0] - 1], s0, a0 = step(s0, a0, w0, starts, buckets)
        if sizes[1] > sizes[3]:
            out[o2 - 1], s1, a1 = step(s1, a1, w1, starts, buckets)
        if sizes[2] > sizes[3]:
            out[o3 - 1], s2, a2 = step(s2, a2, w2, starts, buckets)
        first = np.uint64(1 << 24)
        return s0 == first and s1 == first and s2 == first and s3 == first and a0 + a1 + a2 + a3 == 0

    return decode
