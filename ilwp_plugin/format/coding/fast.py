"""Compiled decoding, where numba is installed (the extra "fast"). It reads the same bytes, only sooner."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ans_decode", "available"]

_WORTH = 1 << 16
"""So many symbols make up for the call."""

_WORTH_LOADING = 1 << 24
"""So many symbols make up for loading numba, a third of a second, in a process that has not done so."""

_BUCKET_BITS = 12


def available(count: int) -> bool:
    """Whether numba is loaded, or can be loaded and is worth it, for so many symbols."""
    least = _WORTH_LOADING if sys.modules.get("numba") is None else _WORTH
    return count >= least and _compiled() is not None


@functools.cache
def _compiled() -> Callable[..., Any] | None:
    """The compiled loop; None where numba is not installed, or does not go with the numpy that is."""
    try:
        from ilwp_plugin.format.coding.compiled import ans_decode
    except ImportError:
        return None
    return ans_decode


def ans_decode(
    streams: Sequence[NDArray[np.uint32]], sizes: Sequence[int], starts: NDArray[np.int64], symbols: NDArray[Any]
) -> bool:
    """Decode ANS streams side by side, one symbol of each in turn.

    Args:
        streams: words of each, the last one first to be read.
        sizes: number of symbols of each; none has more than the first.
        starts: (slots + 1,) cumulated probabilities, the last one 2^24.
        symbols: (sum of sizes,) integers; is filled with the symbols, from 0.

    Returns:
        Whether every stream ended in the first state and with no word left.
    """
    decode = _compiled()
    assert decode is not None, "asked for only where it is available"
    lengths = np.array([len(words) for words in streams])
    left = np.cumsum(lengths)
    first = left - lengths
    buckets = np.searchsorted(starts, np.arange(1 << _BUCKET_BITS, dtype=np.int64) << (24 - _BUCKET_BITS), "right") - 1
    states = decode(
        np.concatenate(streams),
        first,
        left,
        np.array(sizes),
        buckets.astype(np.int32),
        starts.astype(np.uint64),
        np.diff(starts).astype(np.uint64),
        symbols,
    )
    return bool((states == 1 << 24).all() and (left == first).all())
