"""Whole files: read, written, measured. Everything here loops over the registry of sections."""

from __future__ import annotations

import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError, LimitError, TensorError
from ilwp_plugin.format import container
from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.container import (
    Archive,
    SectionBytes,
    SectionEntry,
    TensorInfo,
    directory_entries,
    read_archive,
    read_directory,
    read_file,
    write_file,
)
from ilwp_plugin.format.dtypes import as_numpy
from ilwp_plugin.format.sections import SECTIONS, Context, MetadataSection, OpaqueSection, Section
from ilwp_plugin.format.stream import ByteReader, varint
from ilwp_plugin.ledger import Ledger

__all__ = ["IlwpFile", "measure", "pack", "read", "reread", "write"]


class IlwpFile:
    """A file that was read.

    Attributes:
        infos: the directory: name, dtype, shape and storage of every tensor, in the order of the state dict.
        sections: in the order of the file; unknown ancillary ones are among them.
        digest: identifies the file: the first 16 bytes of its SHA-256, hexadecimal.
        ledger: every byte by part and layer; its `file_bytes` is the size of the file.
    """

    def __init__(
        self,
        infos: Sequence[TensorInfo],
        sections: Sequence[Section],
        digest: str,
        ledger: Ledger,
        unchecked: dict[Section, Callable[[], None]],
    ) -> None:
        self.infos = tuple(infos)
        self.sections = tuple(sections)
        self.digest = digest
        self.ledger = ledger
        self._unchecked = unchecked
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

    @property
    def left(self) -> dict[str, str]:
        """By name, tensors of real or complex numbers, not single ones, that are stored in their own dtype.

        A file does not tell whether they were rounded before, as norms of an unknown eps are.
        """
        exact = {name for section in self.sections if section.lossless for name in section.names}
        inexact = [info for info in self.infos if info.dtype.startswith(("float", "bfloat", "complex"))]
        return {i.name: "stored in its own dtype" for i in inexact if i.name in exact and math.prod(i.shape) > 1}

    def info(self, name: str) -> TensorInfo:
        """A tensor's entry in the directory.

        Raises:
            TensorError: the file has no tensor of this name.
        """
        if name not in self._by_name:
            few = ", ".join(map(repr, self.names[:3])) + (" and others" if len(self.names) > 3 else "")
            raise TensorError(f"no tensor {name!r} in the file; it has {few or 'none'}")
        return self._by_name[name]

    def tensor(self, name: str, *, as_bits: bool = False, copy: bool = True) -> NDArray[Any]:
        """One restored tensor. Of the others nothing is decoded but what predicts it.

        Args:
            name: of the tensor.
            as_bits: bfloat16 and 8-bit floats as unsigned integers of the same bits, for which nothing else is needed.
            copy: whether the array has to be new; else it may be a part of the file, and is not to be changed.

        Raises:
            TensorError: the file has no tensor of this name.
            MissingDependencyError: numpy lacks its dtype, and ml_dtypes is not installed.
            FormatError: of a file that was read without verification: the tensor's section is damaged.
        """
        info = self.info(name)
        if info.storage == "alias":
            name = self.infos[info.alias_of].name
        section = self._owners[name]
        self._check(section)
        restored = section.restore(name) if copy else section.view(name)
        return restored if as_bits else as_numpy(restored, info.dtype)

    def state(self, *, as_bits: bool = False) -> dict[str, NDArray[Any]]:
        """All restored tensors in the order of the state dict, new; aliases are the same array. See `tensor`."""
        restored: dict[str, NDArray[Any]] = {}
        for section in self.sections:
            self._check(section)
            for name, value in section.restore_all():
                restored[name] = value if as_bits else as_numpy(value, self._by_name[name].dtype)
        owners = ((info, self.infos[info.alias_of] if info.storage == "alias" else info) for info in self.infos)
        return {info.name: restored[owner.name] for info, owner in owners}

    def _check(self, section: Section) -> None:
        if section in self._unchecked:
            self._unchecked[section]()
            del self._unchecked[section]


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
        max_bytes: refuse a file whose tensors take more memory than this (those that share memory count in full), or
            that takes more than this and 16 MiB besides them. Without it reading takes at most 64 times the size of
            the file and 64 MiB besides the restored tensors.
        verify: check everything now. Else only what is looked at is checked, when it is looked at: the header and the
            names of the tensors now, the values of a tensor when it is asked for.
        where: names the file in messages.

    Raises:
        FileError: it cannot be read, or is no regular file.
        FormatError: it is no valid `.ilwp` file; `code` says what is wrong.
        LimitError: over `max_bytes`.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, where = memoryview(source).toreadonly().cast("B"), where or "data"
    else:
        data, where = read_file(source), where or os.fspath(source)
    budget = Budget(len(data), where, max_bytes)
    archive = read_archive(data, where, budget, verify=verify)
    memory = sum(info.nbytes for info in archive.tensors)
    if max_bytes is not None and memory > max_bytes:
        raise LimitError(f"{where}: restoring it takes {memory:,} bytes, the limit is {max_bytes:,} (max_bytes)")
    return _decode(data, archive, where, budget, verify)


def _decode(data: memoryview, archive: Archive, where: str, budget: Budget, verify: bool) -> IlwpFile:
    context = Context(archive.tensors, budget)
    ledger, seen = archive.ledger, set[int]()
    unchecked: dict[Section, Callable[[], None]] = {}
    for number, entry in enumerate(archive.sections):
        kind = _kind(entry.number)
        here = f"{where}, section {number} ({OpaqueSection.name if kind is None else kind.name})"
        piece = data[entry.offset : entry.offset + entry.length]
        if verify or kind is None or not kind.untouched:
            _check_sum(piece, entry, here)
        reader = ByteReader(piece, here, OpaqueSection.part if kind is None else kind.part)
        section = _section(reader, entry, kind, context, seen)
        if verify:
            section.check()
        elif kind is not None and kind.untouched:
            unchecked[section] = _later(section, piece, entry, here)
        context.earlier.append(section)
        ledger.charge(section.part, None, entry.header_bytes)
        ledger.extend(reader.ledger)
    _check_owners(archive.tensors, context.earlier, where)
    owners = {name: section.part for section in context.earlier for name in section.names}
    for info, size in zip(archive.tensors, archive.entry_bytes, strict=True):
        ledger.charge(owners.get(info.name, "other"), info.name, size)
    return IlwpFile(archive.tensors, context.earlier, archive.digest, ledger, unchecked)


def _check_sum(piece: memoryview, entry: SectionEntry, here: str) -> None:
    if zlib.crc32(piece) != entry.crc:
        raise FormatError(f"{here}: damaged; its checksum does not match", "section-checksum")


def _later(section: Section, piece: memoryview, entry: SectionEntry, here: str) -> Callable[[], None]:
    def check() -> None:
        _check_sum(piece, entry, here)
        section.check()

    return check


def _check_owners(infos: Sequence[TensorInfo], sections: Sequence[Section], where: str) -> None:
    """Every tensor but aliases is in one section."""
    counts = Counter(name for section in sections for name in section.names)
    for info in infos:
        if info.storage != "alias" and counts[info.name] != 1:
            raise FormatError(
                f"{where}: tensor {info.name!r} is in {counts[info.name]} sections, expected 1", "ownership"
            )


def _kind(number: int) -> type[Section] | None:
    return SECTIONS.find(lambda kind: kind.number == number)


def _section(
    reader: ByteReader, entry: SectionEntry, kind: type[Section] | None, context: Context, seen: set[int]
) -> Section:
    if kind is None:
        if not entry.ancillary:
            raise reader.fail(
                "section-unknown", f"unknown kind {entry.number}; a newer version of ilwp-plugin may know it"
            )
        return OpaqueSection(entry.number, reader.raw(reader.remaining))
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

    Args:
        path: the file.
        infos: the directory: every tensor, in order.
        sections: what holds them.

    Returns:
        The ledger of the file.

    Raises:
        FileError: the file cannot be written; what was at the path before is untouched.
        FormatError: what was written is not what is read back.
    """
    encoded = [section.encode(infos) for section in sections]

    def verify(data: memoryview) -> None:
        written = read(data, where="the new file")
        if written.infos != tuple(infos):
            raise FormatError("its directory is another one")
        for section in sections:
            for name in section.names:
                if not _same_bits(written.tensor(name, as_bits=True, copy=False), section.view(name)):
                    raise FormatError(f"tensor {name!r} is not restored")

    write_file(path, container.pack(infos, encoded), verify)
    return container.measure(infos, encoded)


def reread(infos: Sequence[TensorInfo], sections: Sequence[Section], encoded: Sequence[SectionBytes]) -> None:
    """Decode what a file would hold, but for values that are stored as they are.

    Args:
        infos: the directory.
        sections: of the file.
        encoded: their bytes.

    Raises:
        FormatError: that does not give the same tensors.
    """
    where = "the new file"
    listed = b"".join([varint(len(infos)), *directory_entries(infos)])
    budget = Budget(len(listed) + sum(one.length for one in encoded), where, keeps=False)
    directory, _ = read_directory(ByteReader(memoryview(listed), f"{where}, header"), budget)
    if directory != tuple(infos):
        raise FormatError(f"{where}: its directory is another one")
    context = Context(directory, budget)
    for section, one in zip(sections, encoded, strict=True):
        kind = type(section)
        if section.untouched or kind not in SECTIONS.values():
            context.earlier.append(section)
            continue
        data = memoryview(one.chunks[0] if len(one.chunks) == 1 else b"".join(one.chunks))
        found = kind.decode(ByteReader(data, f"{where}, {section.name} section", section.part), context)
        if not kind.checked_by_restoring:
            found.check()
        context.earlier.append(found)
        for (name, values), (other, own) in zip(found.restore_all(), section.restore_all(), strict=True):
            if name != other or not _same_bits(values, own):
                raise FormatError(f"{where}: tensor {other!r} is not restored")
    _check_owners(directory, context.earlier, where)


def _same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.shape != b.shape or a.itemsize != b.itemsize:
        return False
    word = f"u{a.itemsize}" if a.itemsize < 16 else "u8"
    one, other = (np.ascontiguousarray(x).reshape(-1).view(word) for x in (a, b))
    return np.array_equal(one, other)
