"""Maps of zeros: a bit for each value, row-major, 1 where it is 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.coding import read_indices, write_indices
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["count_ones", "read_map", "write_map"]

_ONES = np.array([i.bit_count() for i in range(256)], np.int64)


def write_map(writer: ByteWriter, zeros: NDArray[np.bool_]) -> None:
    """Write which values are 0; at least one."""
    write_indices(writer, np.packbits(zeros), 256)


def read_map(reader: ByteReader, info: TensorInfo, budget: Budget) -> NDArray[np.uint8]:
    """The inverse, eight values in a byte. Raises FormatError."""
    length = (info.numel + 7) // 8
    # Eight values take at least a bit: what is allocated for the map is bounded by what is there.
    if length > 8 * reader.remaining:
        raise reader.fail("too-short", f"{info.name}: a map of {info.numel} values in {reader.remaining} bytes")
    budget.borrow(8 * length, "a map of zeros")
    packed = read_indices(reader, length, 256).astype(np.uint8)
    if info.numel % 8 and int(packed[-1]) & ((1 << -info.numel % 8) - 1):
        raise reader.fail("padding", f"{info.name}: the padding of the map of zeros is not zero")
    return packed


def count_ones(packed: NDArray[np.uint8]) -> int:
    """How many bits are 1."""
    return int(_ONES @ np.bincount(packed, minlength=256))
