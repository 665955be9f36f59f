"""Reference indices (the non-texture bits): fixed width or Huffman-coded, whichever is smaller."""

from __future__ import annotations

import numpy as np

from ilwp_plugin.coding.base import Histogram, Symbols
from ilwp_plugin.coding.huffman import MAX_LENGTH, HuffmanCoder
from ilwp_plugin.stream import ByteReader, ByteWriter

__all__ = ["read_indices", "write_indices"]

_FIXED, _HUFFMAN = 0, 1


def _width(alphabet: int) -> int:
    return max(alphabet - 1, 0).bit_length()


def write_indices(writer: ByteWriter, indices: Symbols, alphabet: int) -> None:
    """Write a 1-D array of one or more indices 0 .. alphabet - 1; the reader has to know both numbers."""
    fixed = np.packbits((indices[:, None] >> np.arange(_width(alphabet) - 1, -1, -1)) & 1).tobytes()
    if alphabet <= 1 << MAX_LENGTH:
        coder = HuffmanCoder()
        code = coder.fit(Histogram.of(indices))
        table = coder.table(code)
        payload_bytes = (coder.bits(code, Histogram.of(indices)) + 7) // 8
        if len(table) + payload_bytes + 1 < len(fixed):
            writer.u8(_HUFFMAN)
            writer.raw(table)
            writer.varint(payload_bytes)
            writer.raw(coder.encode(code, indices))
            return
    writer.u8(_FIXED)
    writer.raw(fixed)


def read_indices(reader: ByteReader, count: int, alphabet: int) -> Symbols:
    """The inverse of `write_indices`.

    Raises:
        FormatError: an index out of range, or bytes that no encoder writes.
    """
    method = reader.u8()
    if method == _HUFFMAN:
        coder = HuffmanCoder()
        code = coder.read_table(reader)
        indices = coder.decode(code, reader.raw(reader.varint()), count, reader)
    elif method == _FIXED:
        width = _width(alphabet)
        packed = np.frombuffer(reader.raw((count * width + 7) // 8), dtype=np.uint8)
        bits = np.unpackbits(packed)
        if bits[count * width :].any():
            raise reader.fail("reference indices: the padding is not zero")
        weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
        indices = bits[: count * width].reshape(count, width) @ weights
    else:
        raise reader.fail(f"unknown coding {method} of reference indices")
    if count and not 0 <= int(indices.min()) <= int(indices.max()) < alphabet:
        raise reader.fail(f"reference indices from {indices.min()} to {indices.max()}, expected 0 to {alphabet - 1}")
    return indices
