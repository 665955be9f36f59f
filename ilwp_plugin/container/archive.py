"""Sections to one file and back. FORMAT.md describes the layout."""

from __future__ import annotations

import enum
import hashlib
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ilwp_plugin.container.directory import TensorInfo, read_directory, write_directory
from ilwp_plugin.errors import FormatError, LimitError, TensorError
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.stream import ByteReader, ByteWriter

__all__ = ["Archive", "SectionBytes", "SectionKind", "pack", "read_archive"]

MAGIC = b"\x89ILWP\r\n\x1a"  # as PNG's: catches text-mode transfers
VERSION = 1
DIGEST_BYTES = 16
_PREFIX = struct.Struct("<8sBI")  # magic, version, header length
_MAX_HEADER = 1 << 28


class SectionKind(enum.IntEnum):
    """What a section holds. Numbers are never reused."""

    RAW = 1
    CHAIN = 2
    METADATA = 3
    GRID = 4
    BATCH_NORM = 5
    STRUCTURE = 6
    SPARSE = 7
    FIELDS = 8

    @property
    def part(self) -> str:
        """The part of the ledger to which the section's own entry in the header belongs."""
        parts: dict[SectionKind, str] = {
            SectionKind.CHAIN: "header",
            SectionKind.GRID: "grid",
            SectionKind.BATCH_NORM: "batch_norm",
        }
        return parts.get(self, "other")


@dataclass(frozen=True)
class SectionBytes:
    """An encoded section.

    Attributes:
        kind: what it holds.
        chunks: its bytes, in pieces, so that large tensors need not be copied.
        ledger: the charge for each of these bytes.
    """

    kind: SectionKind
    chunks: Sequence[bytes | memoryview]
    ledger: Ledger

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


@dataclass(frozen=True)
class Archive:
    """A file, checked and taken apart.

    Attributes:
        tensors: the directory.
        sections: kind and bytes of each.
        ledger: the charge for each byte outside the sections.
        digest: BLAKE2b-128 of the file, hexadecimal.
    """

    tensors: tuple[TensorInfo, ...]
    sections: tuple[tuple[SectionKind, memoryview], ...]
    ledger: Ledger
    digest: str


def _header(tensors: Sequence[TensorInfo], sections: Sequence[tuple[SectionKind, int, int]]) -> tuple[bytes, Ledger]:
    writer = ByteWriter()
    write_directory(writer, tensors)
    writer.varint(len(sections))
    for kind, length, crc in sections:
        with writer.charge(kind.part, None):
            writer.u8(kind)
            writer.varint(length)
            writer.u32(crc)
    return writer.getvalue(), writer.ledger


def _charge_frame(ledger: Ledger) -> None:
    ledger.charge("header", None, _PREFIX.size + 4 + DIGEST_BYTES)


def measure(tensors: Sequence[TensorInfo], sections: Sequence[tuple[SectionKind, int, Ledger]]) -> Ledger:
    """The ledger of the file that `pack` would write, from the sections' lengths alone."""
    _, ledger = _header(tensors, [(kind, length, 0) for kind, length, _ in sections])
    _charge_frame(ledger)
    for _, _, section_ledger in sections:
        ledger.extend(section_ledger)
    return ledger


def pack(tensors: Sequence[TensorInfo], sections: Sequence[SectionBytes]) -> Iterator[bytes | memoryview]:
    """The bytes of a file, in pieces."""
    entries = []
    for section in sections:
        crc = 0
        for chunk in section.chunks:
            crc = zlib.crc32(chunk, crc)
        entries.append((section.kind, len(section), crc))
    header, _ = _header(tensors, entries)
    if len(header) > _MAX_HEADER:
        raise TensorError(f"the names and shapes of {len(tensors)} tensors take over {_MAX_HEADER} bytes")
    head = _PREFIX.pack(MAGIC, VERSION, len(header)) + header
    head += struct.pack("<I", zlib.crc32(head))
    digest = hashlib.blake2b(head, digest_size=DIGEST_BYTES)
    yield head
    for section in sections:
        for chunk in section.chunks:
            digest.update(chunk)
            yield chunk
    yield digest.digest()


def read_archive(data: bytes, where: str, max_bytes: int | None = None) -> Archive:
    """Check a file and take it apart; the sections are not decoded yet.

    Args:
        data: the whole file.
        where: its name, for messages.
        max_bytes: refuse a file whose tensors take more memory than this, in bytes; aliases count in full.

    Raises:
        FormatError: truncated, damaged, not an .ilwp file or from a newer version.
        LimitError: over `max_bytes`.
    """
    if sys.byteorder != "little":
        raise FormatError(".ilwp files cannot be read on big-endian machines yet")
    if len(data) < _PREFIX.size:
        if not MAGIC.startswith(data[: len(MAGIC)]) or not data:
            raise FormatError(f"{where}: not an .ilwp file ({len(data)} bytes, beginning {data[:8]!r})")
        raise FormatError(f"{where}: truncated; an .ilwp file begins with {_PREFIX.size} bytes, got {len(data)}")
    magic, version, header_length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FormatError(f"{where}: not an .ilwp file; it begins with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise FormatError(
            f"{where}: format version {version}, this version of ilwp-plugin reads {VERSION}; "
            + ("a newer one is needed" if version > VERSION else "the file is damaged")
        )
    body = _PREFIX.size + header_length + 4
    if header_length > _MAX_HEADER or body + DIGEST_BYTES > len(data):
        raise FormatError(
            f"{where}: truncated or damaged; the header claims {header_length} bytes, the file has {len(data)}"
        )
    view = memoryview(data)
    (crc,) = struct.unpack_from("<I", data, body - 4)
    if zlib.crc32(view[: body - 4]) != crc:
        raise FormatError(f"{where}: damaged; the checksum of the header does not match")

    reader = ByteReader(view[_PREFIX.size : body - 4], f"{where}, header")
    tensors = read_directory(reader)
    memory = sum(info.nbytes for info in tensors)
    if max_bytes is not None and memory > max_bytes:
        raise LimitError(f"{where}: restoring it takes {memory:,} bytes, the limit is {max_bytes:,} (max_bytes)")
    entries = []
    count = reader.varint()
    if count > reader.remaining // 6:
        raise reader.fail(f"{count} sections cannot be listed in {reader.remaining} bytes")
    for number in range(count):
        with reader.charge_later() as entry:
            code, length, crc = reader.u8(), reader.varint(), reader.u32()
            if code not in SectionKind.__members__.values():
                raise reader.fail(
                    f"section {number} is of unknown kind {code}; a newer version of ilwp-plugin may know it"
                )
            entry.account = (SectionKind(code).part, None)
        entries.append((SectionKind(code), length, crc))
    reader.finish()

    expected = body + sum(length for _, length, _ in entries) + DIGEST_BYTES
    if expected != len(data):
        what = "truncated" if expected > len(data) else "there are bytes too many"
        raise FormatError(f"{where}: {what}; the header describes {expected} bytes, the file has {len(data)}")
    digest = hashlib.blake2b(view[:-DIGEST_BYTES], digest_size=DIGEST_BYTES).digest()
    if digest != data[-DIGEST_BYTES:]:
        raise FormatError(f"{where}: damaged; the checksum of the file does not match")
    sections, position = [], body
    for number, (kind, length, crc) in enumerate(entries):
        piece = view[position : position + length]
        if zlib.crc32(piece) != crc:
            raise FormatError(f"{where}: the checksum of section {number} ({kind.name.lower()}) does not match")
        sections.append((kind, piece))
        position += length
    _charge_frame(reader.ledger)
    return Archive(tensors, tuple(sections), reader.ledger, digest.hex())
