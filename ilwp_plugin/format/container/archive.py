"""Sections to one file and back. FORMAT.md describes the layout."""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ilwp_plugin.errors import FormatError, TensorError
from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.container.directory import TensorInfo, directory_entries, read_directory, shared_sizes
from ilwp_plugin.format.packing import packed, unpacked
from ilwp_plugin.format.stream import ByteReader, ByteWriter, varint
from ilwp_plugin.ledger import Ledger

__all__ = ["ALIGNMENT", "Archive", "SectionBytes", "SectionEntry", "measure", "pack", "read_archive"]

MAGIC = b"\x89ILWP\r\n\x1a"  # as PNG's: catches text-mode transfers
VERSION = 1
DIGEST_BYTES = 16
_PREFIX = struct.Struct("<8sBI")  # magic, version, header length
_MAX_HEADER = 1 << 28
_PACKED = 1 << 31
"""Of the header's length: the directory is packed."""
_MAX_UNPACKED = 1 << 19
"""Bytes of a directory that is packed: what reading it takes does not depend on how far it was packed."""
ALIGNMENT = 64
_LARGE = 1 << 18
"""A section of so many bytes begins at a multiple of ALIGNMENT."""

_ENTRY_MEMORY = 2048
"""Bytes of memory that a section takes, however small it is, about."""


@dataclass(frozen=True)
class SectionBytes:
    """An encoded section.

    Attributes:
        number: what it holds.
        ancillary: whether a reader that does not know the number may skip it.
        chunks: its bytes, in pieces, so that large tensors need not be copied.
        ledger: the charge for each of these bytes.
        part: the part of the ledger to which the section's entry in the header, and those of its tensors, belong.
        names: of its tensors.
    """

    number: int
    ancillary: bool
    chunks: Sequence[bytes | memoryview]
    ledger: Ledger
    part: str = "other"
    names: Sequence[str] = ()

    @property
    def length(self) -> int:
        """In bytes."""
        return sum(len(chunk) for chunk in self.chunks)


@dataclass(frozen=True)
class SectionEntry:
    """A section as the header lists it.

    Attributes:
        number: what it holds.
        ancillary: whether it may be skipped.
        offset: of its first byte in the file.
        length: in bytes.
        crc: CRC-32 of its bytes.
        header_bytes: of its entry in the header, and of the padding before it.
    """

    number: int
    ancillary: bool
    offset: int
    length: int
    crc: int
    header_bytes: int


@dataclass(frozen=True)
class Archive:
    """A file, checked and taken apart.

    Attributes:
        tensors: the directory.
        entry_bytes: of each tensor, the bytes that its entry takes.
        sections: what the header lists.
        ledger: the charge for what belongs to no tensor and no section.
        digest: the first 16 bytes of the SHA-256 of the file, hexadecimal.
    """

    tensors: tuple[TensorInfo, ...]
    entry_bytes: Sequence[int]
    sections: tuple[SectionEntry, ...]
    ledger: Ledger
    digest: str


def _padding(position: int, length: int) -> int:
    return -position % ALIGNMENT if length >= _LARGE else 0


def _header(
    tensors: Sequence[TensorInfo], sections: Sequence[tuple[SectionBytes, int, int]]
) -> tuple[bytes, bool, Ledger]:
    """The header, whether its directory is packed, and the charge for its bytes."""
    writer = ByteWriter()
    parts = {name: section.part for section, _, _ in sections for name in section.names}
    entries = directory_entries(tensors)
    accounts = [(parts.get(info.name, "other"), info.name) for info in tensors]
    plain = b"".join([varint(len(tensors)), *entries])
    stream = packed(plain) if len(plain) <= _MAX_UNPACKED else plain
    front = varint(len(plain)) + varint(len(stream))
    if is_packed := len(front) + len(stream) < len(plain):
        shares = shared_sizes(list(map(len, entries)), len(stream))
        writer.raw(front)
        writer.shared(stream, [("header", None), *accounts], [len(stream) - sum(shares), *shares])
    else:
        writer.shared(plain, [("header", None), *accounts], [len(plain) - sum(map(len, entries)), *map(len, entries)])
    writer.varint(len(sections))
    for section, length, crc in sections:
        with writer.charge(section.part, None):
            writer.varint(section.number << 1 | section.ancillary)
            writer.varint(length)
            writer.u32(crc)
    return writer.getvalue(), is_packed, writer.ledger


def measure(tensors: Sequence[TensorInfo], sections: Sequence[SectionBytes]) -> Ledger:
    """The ledger of the file that `pack` would write."""
    header, _, ledger = _header(tensors, [(section, section.length, 0) for section in sections])
    ledger.charge("header", None, _PREFIX.size + 4 + DIGEST_BYTES)
    position = _PREFIX.size + len(header) + 4
    for section in sections:
        padding = _padding(position, section.length)
        ledger.charge(section.part, None, padding)
        ledger.extend(section.ledger)
        position += padding + section.length
    return ledger


def pack(tensors: Sequence[TensorInfo], sections: Sequence[SectionBytes]) -> Iterator[bytes | memoryview]:
    """The bytes of a file, in pieces."""
    entries = []
    for section in sections:
        crc = 0
        for chunk in section.chunks:
            crc = zlib.crc32(chunk, crc)
        entries.append((section, section.length, crc))
    header, is_packed, _ = _header(tensors, entries)
    if len(header) > _MAX_HEADER:
        raise TensorError(f"the names and shapes of {len(tensors)} tensors take over {_MAX_HEADER} bytes")
    head = _PREFIX.pack(MAGIC, VERSION, len(header) | (_PACKED if is_packed else 0)) + header
    head += struct.pack("<I", zlib.crc32(head))
    digest = hashlib.sha256(head)
    yield head
    position = len(head)
    for section, length, _ in entries:
        padding = bytes(_padding(position, length))
        for chunk in (padding, *section.chunks):
            digest.update(chunk)
            yield chunk
        position += len(padding) + length
    yield digest.digest()[:DIGEST_BYTES]


def read_archive(data: memoryview, where: str, budget: Budget, *, verify: bool = True) -> Archive:
    """Check a file and take it apart; the sections are neither checked nor decoded yet.

    Args:
        data: the whole file.
        where: its name, for messages.
        budget: for what the header takes in memory.
        verify: whether to check the checksum of the file.

    Raises:
        FormatError: truncated, damaged, not an .ilwp file or from a newer version.
    """
    if sys.byteorder != "little":
        raise FormatError(".ilwp files cannot be read on big-endian machines yet", "platform")
    start = bytes(data[: len(MAGIC)])
    if len(data) < _PREFIX.size:
        if not MAGIC.startswith(start) or not start:
            raise FormatError(f"{where}: not an .ilwp file ({len(data)} bytes, beginning {start!r})", "not-ilwp")
        raise FormatError(
            f"{where}: truncated; an .ilwp file begins with {_PREFIX.size} bytes, got {len(data)}", "truncated"
        )
    magic, version, header_length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FormatError(f"{where}: not an .ilwp file; it begins with {magic!r}, expected {MAGIC!r}", "not-ilwp")
    if version != VERSION:
        raise FormatError(
            f"{where}: format version {version}, this version of ilwp-plugin reads {VERSION}; "
            + ("a newer one is needed" if version > VERSION else "the file is damaged"),
            "version",
        )
    is_packed, header_length = bool(header_length & _PACKED), header_length & ~_PACKED
    body = _PREFIX.size + header_length + 4
    if header_length > _MAX_HEADER or body + DIGEST_BYTES > len(data):
        raise FormatError(
            f"{where}: truncated or damaged; the header claims {header_length} bytes, the file has {len(data)}",
            "header-too-large",
        )
    (crc,) = struct.unpack_from("<I", data, body - 4)
    if zlib.crc32(data[: body - 4]) != crc:
        raise FormatError(f"{where}: damaged; the checksum of the header does not match", "header-checksum")

    reader = ByteReader(data[_PREFIX.size : body - 4], f"{where}, header")
    tensors, entry_bytes = _read_packed(reader, budget) if is_packed else read_directory(reader, budget)
    count = reader.varint()
    if count > reader.remaining // 6:
        raise reader.fail("count", f"{count} sections cannot be listed in {reader.remaining} bytes")
    budget.hold(_ENTRY_MEMORY * count, "the section table")
    entries = []
    position = body
    for _ in range(count):
        at = reader.position
        code, length, crc = reader.varint(), reader.varint(), reader.u32()
        padding = _padding(position, length)
        if any(data[position : position + padding]):
            raise reader.fail("padding", "the padding before a section is not zero")
        entries.append(
            SectionEntry(code >> 1, bool(code & 1), position + padding, length, crc, reader.position - at + padding)
        )
        position += padding + length
    reader.finish()
    if position + DIGEST_BYTES != len(data):
        truncated = position + DIGEST_BYTES > len(data)
        raise FormatError(
            f"{where}: {'truncated' if truncated else 'there are bytes too many'}; "
            f"the header describes {position + DIGEST_BYTES} bytes, the file has {len(data)}",
            "truncated" if truncated else "trailing-bytes",
        )
    digest = bytes(data[-DIGEST_BYTES:])
    if verify and hashlib.sha256(data[:-DIGEST_BYTES]).digest()[:DIGEST_BYTES] != digest:
        raise FormatError(f"{where}: damaged; the checksum of the file does not match", "file-checksum")
    ledger = Ledger()
    spoken_for = sum(entry_bytes) + sum(entry.header_bytes + entry.length for entry in entries)
    ledger.charge("header", None, len(data) - spoken_for)
    return Archive(tensors, entry_bytes, tuple(entries), ledger, digest.hex())


def _read_packed(reader: ByteReader, budget: Budget) -> tuple[tuple[TensorInfo, ...], list[int]]:
    """A packed directory; see `read_directory`."""
    size, length = reader.varint(), reader.varint()
    if size > _MAX_UNPACKED:
        raise reader.fail("range", f"a directory of {size:,} bytes is packed, the most are {_MAX_UNPACKED:,}")
    stream = reader.raw(length)
    try:
        content = b"".join(unpacked(stream, size))
    except ValueError as error:
        raise reader.fail("payload", f"a directory {error}") from None
    inner = ByteReader(memoryview(content), f"{reader.where}, directory")
    tensors, sizes = read_directory(inner, budget)
    inner.finish()
    return tensors, shared_sizes(sizes, length)
