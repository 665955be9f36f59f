"""What numba compiles; imported only where it is installed. Functions of their own module are kept compiled on disk."""

from typing import Any

import numba
import numpy as np

__all__ = ["ans_decode"]

# Every number is a uint64: a signed and an unsigned one would make a float.
_BITS, _WORD, _BUCKET = np.uint64(24), np.uint64(32), np.uint64(12)
_MASK, _LEAST, _ONE = np.uint64((1 << 24) - 1), np.uint64(1 << 32), np.uint64(1)


@numba.njit(cache=True)
def ans_decode(
    words: Any, first: Any, left: Any, sizes: Any, buckets: Any, starts: Any, shares: Any, symbols: Any
) -> Any:
    """See `fast.ans_decode`.

    Args:
        words: uint32, of all streams.
        first: where the words of each stream begin.
        left: where they end; is moved to where the decoder stops.
        sizes: symbols of each stream.
        buckets: int32, of each 2^12th of the quantiles the symbol of the first one.
        starts: uint64, cumulated probabilities.
        shares: uint64, probabilities.
        symbols: to be filled.

    Returns:
        The last state of each stream, uint64.
    """
    count = len(sizes)
    states = np.zeros(count, np.uint64)
    for k in range(count):  # the first state is the two highest words
        for _ in range(2):
            if left[k] > first[k]:
                left[k] -= 1
                states[k] = states[k] << _WORD | np.uint64(words[left[k]])
    begins = np.cumsum(sizes) - sizes
    # Written for many streams, and the states kept in an array: four streams spelled out in local variables are a
    # third faster, four calls of a function that takes the arrays are eight times slower.
    for i in range(sizes[0]):
        for k in range(count):
            if i < sizes[k]:
                state = states[k]
                quantile = state & _MASK
                symbol = np.uint64(buckets[quantile >> _BUCKET])
                while starts[symbol + _ONE] <= quantile:
                    symbol += _ONE
                state = (state >> _BITS) * shares[symbol] + quantile - starts[symbol]
                symbols[begins[k] + i] = symbol
                if state < _LEAST and left[k] > first[k]:
                    left[k] -= 1
                    state = state << _WORD | np.uint64(words[left[k]])
                states[k] = state
    return states
