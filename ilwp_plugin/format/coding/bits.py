"""Strings of bits, the most significant of a byte first, as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack_bytes", "pack_low_bits", "pack_words", "read_fields", "read_low_bits"]

_CHUNK = 1 << 18


def pack_words(words: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The lowest `widths` bits of each word, one after the other: (sum of widths,) uint8 of 0 and 1.

    Args:
        words: (n,) not negative.
        widths: (n,) bits of each, 0 to 62; a word may be shorter.
    """
    ends = np.cumsum(widths)
    total = int(ends[-1]) if len(ends) else 0
    # Bit p of the string is bit (end - 1 - p) of the word in which it lies.
    shifts = np.repeat(ends - 1, widths) - np.arange(total)
    return ((np.repeat(words, widths) >> shifts) & 1).astype(np.uint8)


def pack_bytes(
    symbols: NDArray[Any],
    words: NDArray[np.int64],
    widths: NDArray[np.int64],
    *,
    low: int = 0,
    first: NDArray[np.uint8] | None = None,
) -> bytes:
    """The words of symbols as a bit string; the free bits of the last byte are 0. In pieces, so that memory is bounded.

    Args:
        symbols: (n,) numbers of words, and `low`.
        words: (m,) the words.
        widths: (m,) bits of each.
        first: 0 and 1, to stand before them.
    """
    out, left = bytearray(), np.empty(0, np.uint8) if first is None else first
    for start in range(0, len(symbols), _CHUNK):
        part = symbols[start : start + _CHUNK].astype(np.int64) - low
        bits = np.concatenate([left, pack_words(words[part], widths[part])])
        whole = len(bits) // 8 * 8
        out += np.packbits(bits[:whole]).tobytes()
        left = bits[whole:]
    return bytes(out + np.packbits(left).tobytes())


def pack_low_bits(symbols: NDArray[Any], width: int) -> bytes:
    """The lowest `width` bits of each symbol, 1 to 8, one after the other."""
    out = bytearray()
    for start in range(0, len(symbols), _CHUNK):  # a multiple of 8 symbols: each piece ends with a byte
        part = (symbols[start : start + _CHUNK].astype(np.int64) << (8 - width)).astype(np.uint8)
        out += np.packbits(np.unpackbits(part[:, None], axis=1, count=width)).tobytes()
    return bytes(out)


def read_low_bits(data: memoryview, start: int, count: int, width: int) -> NDArray[np.uint8]:
    """Numbers from such a string, from the one of a position on."""
    first, last = start * width // 8, ((start + count) * width + 7) // 8
    bits = np.unpackbits(np.frombuffer(data[first:last], np.uint8))
    at = start * width - 8 * first
    lifted = np.packbits(bits[at : at + count * width].reshape(count, width), axis=1)[:, 0]
    numbers: NDArray[np.uint8] = lifted >> np.uint8(8 - width)
    return numbers


def read_fields(bits: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    """Numbers of `width` bits from a string of 0 and 1, whose length is a multiple of it."""
    weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
    result: NDArray[Any] = bits.reshape(-1, width) @ weights
    return result
