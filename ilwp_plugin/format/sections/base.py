"""What every section of a file offers, and the registry of kinds: reading, ledger, inspect and copying loop over it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.container import SectionBytes, TensorInfo
from ilwp_plugin.format.dtypes import DTYPES
from ilwp_plugin.format.stream import ByteReader, ByteWriter
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.registry import Registry

__all__ = [
    "SECTIONS",
    "Context",
    "OpaqueSection",
    "Section",
    "Stored",
    "Summary",
    "TensorSection",
    "read_info",
    "value_bytes",
]

S = TypeVar("S", bound="Section")
T = TypeVar("T")


@dataclass
class Context:
    """What a section may look at while it is decoded.

    Attributes:
        directory: the tensors of the file.
        budget: memory that may be taken besides the restored tensors.
        earlier: the sections before this one.
        notes: what sections of a kind leave for those that come after them, by name of the kind.
    """

    directory: Sequence[TensorInfo]
    budget: Budget
    earlier: list[Section] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def find(self, kind: type[S]) -> S | None:
        """The first earlier section of a kind."""
        return next((section for section in self.earlier if isinstance(section, kind)), None)


@dataclass(frozen=True)
class Summary:
    """One layer or tensor of a section, for people: what `ilwp inspect` shows.

    Attributes:
        name: of the layer or tensor.
        kind: name of the section.
        shape: of the tensor.
        details: what there is to say, by name: bits, step, mode, share of zeros, entropy in bits a value.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


class Section(ABC):
    """A section of a file.

    A new kind is one module with a subclass, and `SECTIONS.register(name)(Class)`; nothing else has to know it.
    """

    number: int
    """In the file; never reused. Numbers from 64 on are for private use."""
    name: ClassVar[str]
    """In the registry, in messages and reports."""
    ancillary: bool = False
    """Whether readers that do not know the kind skip it. Such a section owns no tensors, and nothing in it depends on
    the rest of the file but the names of tensors: it is copied into files that hold other values."""
    single: ClassVar[bool] = False
    """Whether a file has at most one of the kind."""
    untouched: ClassVar[bool] = False
    """Whether `decode` looks at none of its bytes, so that their checksum can wait until one of its tensors is asked
    for."""
    lossless: ClassVar[bool] = False
    """Whether it holds tensors just as the model had them."""
    checked_by_restoring: ClassVar[bool] = False
    """Whether `restore_all` raises all that `check` does, so that one of them is enough."""
    part: ClassVar[str] = "other"
    """The part of the ledger that its entry in the header, and those of its tensors in the directory, belong to."""

    @property
    def names(self) -> Sequence[str]:
        """Of the tensors that it holds."""
        return ()

    @abstractmethod
    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        """Write the section's bytes, each charged. Tensors are named by their positions in the directory."""

    @classmethod
    @abstractmethod
    def decode(cls: type[S], reader: ByteReader, context: Context) -> S:
        """The inverse of `write`. What is large is left in the reader's bytes until it is needed.

        Raises:
            FormatError: no encoder could have written these bytes.
        """

    def check(self) -> None:  # noqa: B027  many kinds leave nothing
        """Decode what `decode` has left, and let it go again. Raises FormatError."""

    def encode(self, directory: Sequence[TensorInfo]) -> SectionBytes:
        """The section's bytes as the container takes them."""
        writer = ByteWriter(self.part)
        self.write(writer, directory)
        return self._bytes([writer.content()], writer.ledger)

    def _bytes(self, chunks: Sequence[bytes | memoryview], ledger: Ledger) -> SectionBytes:
        return SectionBytes(self.number, self.ancillary, chunks, ledger, self.part, tuple(self.names))

    def restore(self, name: str) -> NDArray[Any]:
        """One of its tensors, new, in its own shape; carried as `dtypes` says. Raises KeyError for other names."""
        raise KeyError(name)

    def view(self, name: str) -> NDArray[Any]:
        """The same, perhaps not new and not to be changed, where that saves a copy."""
        return self.restore(name)

    def restore_all(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """All its tensors, new, one after the other."""
        for name in self.names:
            yield name, self.restore(name)

    def summaries(self) -> list[Summary]:
        """What there is to say about each layer."""
        return []

    def without(self: S, names: Collection[str]) -> S | None:
        """The same without some of its tensors, None if nothing is left.

        Raises NotImplementedError where tensors need each other.
        """
        if names:
            raise NotImplementedError(f"a {self.name} section cannot do without some of its tensors")
        return self


class TensorSection(Section):
    """A section of tensors that are named one by one.

    Attributes:
        infos: of the tensors, in the order of the file.
    """

    infos: Sequence[TensorInfo]

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.infos]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {info.name: number for number, info in enumerate(self.infos)}


class Stored(Sequence[T]):
    """What a section holds as it stands in a file; each item is decoded when it is asked for.

    Args:
        count: of the items.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    @abstractmethod
    def _decoded(self, number: int) -> T:
        """An item, by its number from 0 on. Raises FormatError."""

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> T: ...

    @overload
    def __getitem__(self, number: slice) -> list[T]: ...

    def __getitem__(self, number: int | slice) -> T | list[T]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(self._count))]
        return self._decoded(range(self._count)[number])


SECTIONS: Registry[type[Section]] = Registry("section")
"""Kinds of sections by their name in FORMAT.md."""


class OpaqueSection(Section):
    """An ancillary section of an unknown kind: kept as it is."""

    name = "unknown"
    ancillary = True

    def __init__(self, number: int, data: bytes | memoryview) -> None:
        self.number = number
        self.data = data

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        writer.raw(bytes(self.data))

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> OpaqueSection:
        raise NotImplementedError("an unknown section is not decoded")


def read_info(reader: ByteReader, directory: Sequence[TensorInfo], section: str) -> TensorInfo:
    """The directory entry that a section names by its number. Raises FormatError, with `section` in words."""
    number = reader.varint()
    if number >= len(directory):
        raise reader.fail("position", f"{section} refers to tensor {number}, the file has {len(directory)}")
    return directory[number]


def value_bytes(values: NDArray[Any], info: TensorInfo) -> memoryview:
    """The values of a tensor as little-endian bytes, in row-major order; no copy where they are so already."""
    carrier = DTYPES[info.dtype].carrier
    if values.dtype.itemsize != carrier.itemsize or values.size != info.numel:
        raise ValueError(f"{info.name}: {values.dtype} of shape {values.shape} for {info.dtype} of {info.shape}")
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8).data if flat.size else memoryview(b"")
