"""Bytes without a form of their own, packed by LZMA2, and unpacked in bounded memory."""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["MOST_TRIED", "packed", "unpacked"]

_FILTER = {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}
MOST_TRIED = 1 << 22
"""Bytes for which a slow way of packing is tried beside a quick one."""
_PIECE = 1 << 20
"""Bytes that are unpacked at one time."""


def packed(content: bytes) -> bytes:
    """A raw LZMA2 stream with a dictionary of 1 MiB: as small as LZMA makes it, unless that would take long."""
    efforts: list[Mapping[str, Any]] = [{}]
    if len(content) <= MOST_TRIED:
        efforts += [{"preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": pb} for pb in (0, 2)]
    streams = (lzma.compress(content, lzma.FORMAT_RAW, filters=[{**_FILTER, **effort}]) for effort in efforts)
    return min(streams, key=len)


def unpacked(stream: bytes | memoryview, size: int) -> Iterator[bytes]:
    """The content of such a stream, in pieces.

    Args:
        stream: all of it.
        size: of the content, in bytes; no more is unpacked.

    Raises:
        ValueError: it is no such stream, has another size, or is not used up.
    """
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_FILTER])
    rest, done = bytes(stream), 0
    while not unpacker.eof:
        try:
            piece = unpacker.decompress(rest, _PIECE)
        except lzma.LZMAError as error:
            raise ValueError(f"that cannot be unpacked: {error}") from None
        rest, done = b"", done + len(piece)
        if done > size or (not piece and unpacker.needs_input):
            break
        yield piece
    if done != size or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"of other than {size:,} bytes")
