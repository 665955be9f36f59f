"""Raw sections: the values of untouched tensors, one after the other, little-endian.

Wider values come first, so that each tensor lies at a multiple of its values' size without padding. A large model has
several, so that a tensor can be read and checked without the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.container import SectionBytes, TensorInfo
from ilwp_plugin.format.dtypes import DTYPES
from ilwp_plugin.format.sections.base import SECTIONS, Context, Summary, TensorSection, value_bytes
from ilwp_plugin.format.stream import ByteReader, ByteWriter
from ilwp_plugin.ledger import Ledger

__all__ = ["RawSection"]

_ENOUGH = 1 << 26
"""Bytes of a section that no further tensor is put into."""


@SECTIONS.register("raw")
class RawSection(TensorSection):
    """Untouched tensors.

    Attributes:
        infos: of tensors that are stored raw, wide values first, else in the order of the directory.
        values: by name; of any dtype with as many bytes as theirs.
    """

    number = 1
    name = "raw"
    lossless = True
    untouched = True

    def __init__(self, infos: Sequence[TensorInfo], values: Mapping[str, NDArray[Any]]) -> None:
        self.infos = tuple(_ordered(infos))
        self.values = dict(values)
        self._where = self.name

    @classmethod
    def split(cls, infos: Sequence[TensorInfo], values: Mapping[str, NDArray[Any]]) -> list[RawSection]:
        """All raw tensors of a directory, in as many sections as it takes; none where there are none."""
        groups: list[list[TensorInfo]] = []
        room = 0
        for info in _ordered([info for info in infos if info.storage == "raw"]):
            if not groups or (room <= 0 and info.nbytes):
                groups.append([])
                room = _ENOUGH
            groups[-1].append(info)
            room -= info.nbytes
        return [cls(group, {info.name: values[info.name] for info in group}) for group in groups]

    def encode(self, directory: Sequence[TensorInfo]) -> SectionBytes:
        ledger = Ledger()
        for info in self.infos:
            ledger.charge(self.part, info.name, info.nbytes)
        return self._bytes([value_bytes(self.values[info.name], info) for info in self.infos], ledger)

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        for info in self.infos:
            with writer.charge(self.part, info.name):
                writer.raw(bytes(value_bytes(self.values[info.name], info)))

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> RawSection:
        if cls.name not in context.notes:
            left = _ordered([info for info in context.directory if info.storage == "raw"])
            context.notes[cls.name] = left[::-1]
        left, infos = context.notes[cls.name], []
        while left and (reader.remaining or not left[-1].nbytes):
            info = left.pop()
            infos.append(info)
            with reader.charge(cls.part, info.name):
                reader.raw(info.nbytes)
        reader.finish()
        section = cls.__new__(cls)
        section.infos, section._where = tuple(infos), reader.where
        section.values = dict(_views(reader.data, infos))
        return section

    def check(self) -> None:
        for info in self.infos:
            if info.dtype == "bool" and info.numel and int(self.values[info.name].view(np.uint8).max()) > 1:
                raise FormatError(f"{self._where}: {info.name}: a bool that is neither 0 nor 1", "value")

    def restore(self, name: str) -> NDArray[Any]:
        return self.values[name].copy()

    def view(self, name: str) -> NDArray[Any]:
        return self.values[name]

    def summaries(self) -> list[Summary]:
        return [Summary(info.name, self.name, info.shape, {"dtype": info.dtype}) for info in self.infos]

    def without(self, names: Collection[str]) -> RawSection | None:
        infos = [info for info in self.infos if info.name not in names]
        return RawSection(infos, {info.name: self.values[info.name] for info in infos}) if infos else None


def _ordered(infos: Sequence[TensorInfo]) -> list[TensorInfo]:
    return sorted(infos, key=lambda info: -DTYPES[info.dtype].itemsize)


def _views(data: memoryview, infos: Sequence[TensorInfo]) -> Iterator[tuple[str, NDArray[Any]]]:
    at = 0
    for info in infos:
        piece = data[at : at + info.nbytes]
        yield info.name, np.frombuffer(piece, DTYPES[info.dtype].carrier).reshape(info.shape)
        at += info.nbytes
