"""Whole files: read, written, measured. Everything here loops over the registry of sections."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError, LimitError, TensorError
from ilwp_plugin.format import container
from ilwp_plugin.format.container import Archive, SectionEntry, TensorInfo, read_archive, read_file, write_file
from ilwp_plugin.format.dtypes import as_numpy
from ilwp_plugin.format.sections import SECTIONS, Context, MetadataSection, OpaqueSection, Section
from ilwp_plugin.format.stream import ByteReader
from ilwp_plugin.ledger import Ledger

__all__ = ["IlwpFile", "measure", "pack", "read", "write"]


class IlwpFile:
    """A file that was read.

    Attributes:
        infos: the directory: name, dtype, shape and storage of every tensor, in the order of the state dict.
        sections: in the order of the file; unknown ancillary ones are among them.
        digest: identifies the file: the first 16 bytes of its SHA-256, hexadecimal.
        ledger: every byte by part and layer; its `file_bytes` is the size of the file.
    """

    def __init__(self, infos: Sequence[TensorInfo], sections: Sequence[Section], digest: str, ledger: Ledger) -> None:
        self.infos = tuple(infos)
        self.sections = tuple(sections)
        self.digest = digest
        self.ledger = ledger
        self._by_name = {info.name: info for info in self.infos}
        self._owners = {name: section for section in self.sections for name in section.names}

    @property
    def names(self) -> list[str]:
        """Of all tensors, in the order of the state dict."""
        return [info.name for info in self.infos]

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of the JSON object that was stored along; empty where none was."""
        for section in self.sections:
            if isinstance(section, MetadataSection):
                return section.value
        return {}

    def info(self, name: str) -> TensorInfo:
        """A tensor's entry in the directory.

        Raises:
            TensorError: the file has no tensor of this name.
        """
        if name not in self._by_name:
            few = ", ".join(map(repr, self.names[:3])) + (" and others" if len(self.names) > 3 else "")
            raise TensorError(f"no tensor {name!r} in the file; it has {few or 'none'}")
        return self._by_name[name]

    def tensor(self, name: str, *, as_bits: bool = False) -> NDArray[Any]:
        """One restored tensor, new.

        Args:
            name: of the tensor.
            as_bits: bfloat16 and 8-bit floats as unsigned integers of the same bits, for which nothing else is needed.

        Raises:
            TensorError: the file has no tensor of this name.
            MissingDependencyError: numpy lacks its dtype, and ml_dtypes is not installed.
        """
        info = self.info(name)
        if info.storage == "alias":
            name = self.infos[info.alias_of].name
        restored = self._owners[name].restore(name)
        return restored if as_bits else as_numpy(restored, info.dtype)

    def state(self, *, as_bits: bool = False) -> dict[str, NDArray[Any]]:
        """All restored tensors in the order of the state dict, new; aliases are the same array. See `tensor`."""
        restored: dict[str, NDArray[Any]] = {}
        for section in self.sections:
            for name, value in section.restore_all():
                restored[name] = value if as_bits else as_numpy(value, self._by_name[name].dtype)
        names = {
            info.name: self.infos[info.alias_of].name if info.storage == "alias" else info.name for info in self.infos
        }
        return {name: restored[own] for name, own in names.items()}


def read(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    *,
    max_bytes: int | None = None,
    verify: bool = True,
    where: str | None = None,
) -> IlwpFile:
    """Read a file.

    Args:
        source: its path, or its content.
        max_bytes: refuse a file whose tensors take more memory than this; tensors that share memory count in full.
        verify: check the checksum of the file.
        where: names it in messages.

    Raises:
        FileError: it cannot be read.
        FormatError: it is no valid `.ilwp` file; `code` says what is wrong.
        LimitError: over `max_bytes`.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, where = memoryview(source).toreadonly(), where or "data"
    else:
        data, where = memoryview(read_file(source)), where or os.fspath(source)
    archive = read_archive(data, where, verify=verify)
    memory = sum(info.nbytes for info in archive.tensors)
    if max_bytes is not None and memory > max_bytes:
        raise LimitError(f"{where}: restoring it takes {memory:,} bytes, the limit is {max_bytes:,} (max_bytes)")
    return _decode(data, archive, where)


def _decode(data: memoryview, archive: Archive, where: str) -> IlwpFile:
    kinds = {kind.number: kind for kind in SECTIONS.values()}
    context = Context(archive.tensors)
    ledger, seen = archive.ledger, set[int]()
    for number, entry in enumerate(archive.sections):
        kind = kinds.get(entry.number)
        name = OpaqueSection.name if kind is None else kind.name
        here = f"{where}, section {number} ({name})"
        piece = data[entry.offset : entry.offset + entry.length]
        if zlib.crc32(piece) != entry.crc:
            raise FormatError(f"{here}: damaged; its checksum does not match", "section-checksum")
        reader = ByteReader(piece, here, OpaqueSection.part if kind is None else kind.part)
        section = _section(reader, piece, entry, kind, context, seen)
        context.earlier.append(section)
        ledger.charge(section.part, None, entry.header_bytes)
        ledger.extend(reader.ledger)
    counts = Counter(name for section in context.earlier for name in section.names)
    owners = {name: section for section in context.earlier for name in section.names}
    for info, size in zip(archive.tensors, archive.entry_bytes, strict=True):
        if info.storage != "alias" and counts[info.name] != 1:
            raise FormatError(
                f"{where}: tensor {info.name!r} is in {counts[info.name]} sections, expected 1", "ownership"
            )
        ledger.charge(owners[info.name].part if info.name in owners else "other", info.name, size)
    return IlwpFile(archive.tensors, context.earlier, archive.digest, ledger)


def _section(
    reader: ByteReader,
    piece: memoryview,
    entry: SectionEntry,
    kind: type[Section] | None,
    context: Context,
    seen: set[int],
) -> Section:
    if kind is None:
        if not entry.ancillary:
            raise reader.fail(
                "section-unknown", f"unknown kind {entry.number}; a newer version of ilwp-plugin may know it"
            )
        return OpaqueSection(entry.number, bytes(reader.raw(len(piece))))
    if kind.ancillary != entry.ancillary:
        raise reader.fail("form", f"a {kind.name} section is {'' if kind.ancillary else 'not '}ancillary")
    if kind.single and kind.number in seen:
        raise reader.fail("section-twice", "a second section of a kind of which there may be one")
    seen.add(kind.number)
    return kind.decode(reader, context)


def pack(infos: Sequence[TensorInfo], sections: Sequence[Section]) -> Iterator[bytes | memoryview]:
    """The bytes of a file, in pieces.

    Args:
        infos: the directory.
        sections: in the order of the file; one whose tensors need another one (a chain of a pruned network its
            structure) stands behind it.
    """
    return container.pack(infos, [section.encode(infos) for section in sections])


def measure(infos: Sequence[TensorInfo], sections: Sequence[Section]) -> Ledger:
    """The ledger of the file that `pack` would write."""
    return container.measure(infos, [section.encode(infos) for section in sections])


def write(path: str | os.PathLike[str], infos: Sequence[TensorInfo], sections: Sequence[Section]) -> Ledger:
    """Write a file atomically, and verify it by reading it back.

    Returns:
        The ledger of the file.

    Raises:
        FileError: the file cannot be written; what was at the path before is untouched.
    """
    encoded = [section.encode(infos) for section in sections]

    def verify(data: bytes) -> None:
        written = read(data, where="the new file")
        if written.infos != tuple(infos):
            raise FormatError("its directory is another one")
        for section in sections:
            for name, value in section.restore_all():
                if not _same_bits(written.tensor(name, as_bits=True), value):
                    raise FormatError(f"tensor {name!r} is not restored")

    write_file(path, container.pack(infos, encoded), verify)
    return container.measure(infos, encoded)


def _same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return (
        a.shape == b.shape
        and a.itemsize == b.itemsize
        and np.array_equal(
            np.ascontiguousarray(a).reshape(-1).view(np.uint8), np.ascontiguousarray(b).reshape(-1).view(np.uint8)
        )
    )
