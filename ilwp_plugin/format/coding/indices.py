"""Streams of indices, such as references: fixed width or Huffman-coded, whichever is smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.coding.base import Run, Segment
from ilwp_plugin.format.coding.bits import read_fields
from ilwp_plugin.format.coding.huffman import MAX_LENGTH, HuffmanCoder
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["read_indices", "write_indices"]

_FIXED, _HUFFMAN = 0, 1


def _width(alphabet: int) -> int:
    return max(alphabet - 1, 0).bit_length()


def write_indices(writer: ByteWriter, indices: NDArray[np.integer[Any]], alphabet: int) -> None:
    """Write a 1-D array of one or more indices 0 .. alphabet - 1; the reader has to know both numbers.

    Args:
        writer: gets the bytes.
        indices: (n,) integers.
        alphabet: how many different ones there may be.
    """
    width = _width(alphabet)
    if width == 8:
        fixed = indices.astype(np.uint8).tobytes()
    else:
        fixed = np.packbits((indices.astype(np.int64)[:, None] >> np.arange(width - 1, -1, -1)) & 1).tobytes()
    if alphabet <= 1 << MAX_LENGTH:
        symbols = indices.astype(np.int64)
        coder, run = HuffmanCoder(), Run.of(symbols)
        code = coder.fit(run)
        table = coder.table(code)
        payload_bytes = coder.payload_bytes(code, run)
        if len(table) + payload_bytes + 1 < len(fixed):
            writer.u8(_HUFFMAN)
            writer.raw(table)
            writer.varint(payload_bytes)
            writer.raw(coder.encode(code, symbols, run.segments))
            return
    writer.u8(_FIXED)
    writer.raw(fixed)


def read_indices(reader: ByteReader, count: int, alphabet: int) -> NDArray[np.int64]:
    """The inverse of `write_indices`.

    Args:
        reader: at the first byte.
        count: of indices; is to be bounded by the caller where the alphabet has one index only.
        alphabet: how many different ones there may be.

    Returns:
        (count,) int64.

    Raises:
        FormatError: an index out of range, or bytes that no encoder writes.
    """
    method = reader.u8()
    indices: NDArray[np.int64]
    if method == _HUFFMAN:
        coder = HuffmanCoder()
        code = coder.read_table(reader)
        payload = reader.raw(reader.varint())
        indices = coder.decode(code, payload, [Segment.flat(count)], reader).astype(np.int64)
    elif method == _FIXED:
        width = _width(alphabet)
        packed = np.frombuffer(reader.raw((count * width + 7) // 8), dtype=np.uint8)
        bits = np.unpackbits(packed)
        if bits[count * width :].any():
            raise reader.fail("padding", "indices: the padding is not zero")
        indices = read_fields(bits[: count * width], width) if width else np.zeros(count, np.int64)
    else:
        raise reader.fail("form", f"unknown coding {method} of indices")
    if count and not 0 <= int(indices.min()) <= int(indices.max()) < alphabet:
        raise reader.fail("reference", f"indices from {indices.min()} to {indices.max()}, expected 0 to {alphabet - 1}")
    return indices
