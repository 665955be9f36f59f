"""The raw section: the values of all untouched tensors, one after the other, little-endian.

Wider values come first, so that each tensor lies at a multiple of its values' size without padding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.container import SectionBytes, TensorInfo
from ilwp_plugin.format.dtypes import DTYPES
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section, Summary, value_bytes
from ilwp_plugin.format.stream import ByteReader, ByteWriter
from ilwp_plugin.ledger import Ledger

__all__ = ["RawSection"]


@SECTIONS.register("raw")
class RawSection(Section):
    """Untouched tensors.

    Attributes:
        infos: of those of the directory that are stored raw, in its order.
        values: by name; of any dtype with as many bytes as theirs.
    """

    number = 1
    name = "raw"

    def __init__(self, infos: Sequence[TensorInfo], values: Mapping[str, NDArray[Any]]) -> None:
        self.infos = tuple(infos)
        self.values = dict(values)

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.infos]

    def encode(self, directory: Sequence[TensorInfo]) -> SectionBytes:
        ledger = Ledger()
        chunks = []
        for info in _ordered(self.infos):
            chunks.append(value_bytes(self.values[info.name], info))
            ledger.charge(self.part, info.name, info.nbytes)
        return self._bytes(chunks, ledger)

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        for info in _ordered(self.infos):
            with writer.charge(self.part, info.name):
                writer.raw(bytes(value_bytes(self.values[info.name], info)))

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> RawSection:
        infos = [info for info in context.directory if info.storage == "raw"]
        values = {}
        for info in _ordered(infos):
            with reader.charge(cls.part, info.name):
                piece = reader.raw(info.nbytes)
            if info.dtype == "bool" and info.numel and int(np.frombuffer(piece, np.uint8).max()) > 1:
                raise reader.fail("value", f"{info.name}: a bool that is neither 0 nor 1")
            values[info.name] = np.frombuffer(piece, DTYPES[info.dtype].carrier).reshape(info.shape)
        reader.finish()
        return cls(infos, values)

    def restore(self, name: str) -> NDArray[Any]:
        return self.values[name].copy()

    def summaries(self) -> list[Summary]:
        return [Summary(info.name, self.name, info.shape, {"dtype": info.dtype}) for info in self.infos]

    def without(self, names: Collection[str]) -> RawSection | None:
        infos = [info for info in self.infos if info.name not in names]
        return RawSection(infos, {info.name: self.values[info.name] for info in infos}) if infos else None


def _ordered(infos: Sequence[TensorInfo]) -> list[TensorInfo]:
    return sorted(infos, key=lambda info: -DTYPES[info.dtype].itemsize)
