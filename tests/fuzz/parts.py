"""A file taken apart and put together again, with lengths and checksums made anew.

It is written apart from the reader, and believes whatever still has a form: mutants of mutants are taken apart too.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
import zlib
from dataclasses import dataclass

MAGIC = b"\x89ILWP\r\n\x1a"
_LARGE, _ALIGNMENT, _DIGEST = 1 << 18, 64, 16
_PACKED = 1 << 31
_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
_FRAME = len(MAGIC) + 5


@dataclass
class Parts:
    """What a file consists of.

    Attributes:
        entries: of the directory, one for each tensor, in bytes.
        sections: the code (number and ancillary bit) and the bytes of each.
        packed: whether the directory is.
    """

    entries: list[bytes]
    sections: list[tuple[int, bytes]]
    packed: bool = False

    def build(self) -> bytes:
        """The file, well signed."""
        directory = varint(len(self.entries)) + b"".join(self.entries)
        if self.packed:
            stream = lzma.compress(directory, lzma.FORMAT_RAW, filters=_FILTERS)
            directory = varint(len(directory)) + varint(len(stream)) + stream
        header = [directory, varint(len(self.sections))]
        for code, body in self.sections:
            header += [varint(code), varint(len(body)), struct.pack("<I", zlib.crc32(body))]
        listed = b"".join(header)
        front = MAGIC + struct.pack("<BI", 1, len(listed) | (_PACKED if self.packed else 0)) + listed
        content = bytearray(front + struct.pack("<I", zlib.crc32(front)))
        for _, body in self.sections:
            if len(body) >= _LARGE:
                content += bytes(-len(content) % _ALIGNMENT)
            content += body
        return bytes(content) + hashlib.sha256(content).digest()[:_DIGEST]


def varint(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def take_apart(data: bytes) -> Parts | None:
    """The parts of a file, or None where it has not even the form of one."""
    try:
        return _take_apart(data)
    except (IndexError, struct.error):
        return None


def _take_apart(data: bytes) -> Parts | None:
    if data[: len(MAGIC)] != MAGIC:
        return None
    (length,) = struct.unpack_from("<I", data, len(MAGIC) + 1)
    packed, length = bool(length & _PACKED), length & ~_PACKED
    if _FRAME + length + 4 + _DIGEST > len(data):
        return None
    header = data[_FRAME : _FRAME + length]
    if packed:
        header = _unpacked(header)
    count, at = _varint(header, 0)
    entries = []
    for _ in range(count):
        start, at = at, _entry(header, at)
        entries.append(header[start:at])
    count, at = _varint(header, at)
    sections, position = [], _FRAME + length + 4
    for _ in range(count):
        code, at = _varint(header, at)
        size, at = _varint(header, at)
        at += 4
        if size >= _LARGE:
            position += -position % _ALIGNMENT
        sections.append((code, data[position : position + size]))
        position += size
    return Parts(entries, sections, packed) if at == len(header) and position + _DIGEST == len(data) else None


def _unpacked(header: bytes) -> bytes:
    """With its directory plain. Raises IndexError where it is packed wrongly."""
    size, at = _varint(header, 0)
    length, at = _varint(header, at)
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        directory = unpacker.decompress(header[at : at + length], min(size, _LARGE * 2))
    except lzma.LZMAError:
        raise IndexError from None
    return directory + header[at + length :]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80 or shift > 63:
            return value, at


def _entry(data: bytes, at: int) -> int:
    """Where an entry of the directory ends."""
    _, at = _varint(data, at)
    new, at = _varint(data, at)
    for _ in range(new):
        token, at = _varint(data, at)
        if token == 0:
            size, at = _varint(data, at)
            at += size
    code = data[at]
    at += 1
    if code >> 5 & 3 == 2:  # an alias: the position of another tensor
        return _varint(data, at)[1]
    if code < 0x80:
        rank, at = _varint(data, at)
        for _ in range(rank):
            _, at = _varint(data, at)
    return at
