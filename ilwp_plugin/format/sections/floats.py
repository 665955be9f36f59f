"""The floats section: floating-point tensors as they are, byte by byte: exponents repeat, mantissas do not.

The bits of a value are turned left by one, so that the sign goes to the end and the exponent fills the first byte. The
first bytes of all values, then the second ones, and so on, are coded like codes where that saves something, and stored
where it does not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.coding import AUTO, Histogram, Run, Segment
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import DTYPES, is_real
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section, Summary, read_info, value_bytes
from ilwp_plugin.format.sections.codes import read_codes, write_codes
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["FloatSection"]

_WORTH = 0.97
"""A plane of bytes is coded where its entropy says that it takes less than this share of its size."""

_TABLE_BYTES = 24
"""About what a tensor's share of code tables takes."""


@SECTIONS.register("floats")
class FloatSection(Section):
    """Floating-point tensors of 16 bits or more, bit for bit.

    Attributes:
        infos: their entries in the directory, in its order.
        values: by name; of any dtype with as many bytes as theirs.
        coder: name of the coder, or "auto".
    """

    number = 9
    name = "floats"

    def __init__(self, infos: Sequence[TensorInfo], values: Mapping[str, NDArray[Any]], coder: str = AUTO) -> None:
        self.infos = tuple(infos)
        self.values = dict(values)
        self.coder = coder

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.infos]

    def restore(self, name: str) -> NDArray[Any]:
        return self.values[name].copy()

    def summaries(self) -> list[Summary]:
        return [Summary(info.name, self.name, info.shape, {"dtype": info.dtype}) for info in self.infos]

    def without(self, names: Collection[str]) -> FloatSection | None:
        infos = [info for info in self.infos if info.name not in names]
        values = {info.name: self.values[info.name] for info in infos}
        return FloatSection(infos, values, self.coder) if infos else None

    @staticmethod
    def size(info: TensorInfo, values: NDArray[Any]) -> float | None:
        """About the bytes that a tensor would take; None where it cannot be in such a section."""
        if not is_real(info.dtype) or not info.numel:
            return None
        planes = _planes(values, info)
        return _TABLE_BYTES + sum(min(_entropy_bytes(plane), len(plane)) for plane in planes)

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        planes = [_planes(self.values[info.name], info) for info in self.infos]
        stored = [[_entropy_bytes(plane) > _WORTH * len(plane) for plane in own] for own in planes]
        writer.varint(len(self.infos))
        for info, flags in zip(self.infos, stored, strict=True):
            with writer.charge(self.part, info.name):
                writer.varint(position[info.name])
                writer.u8(sum(flag << number for number, flag in enumerate(flags)))
        for info, own, flags in zip(self.infos, planes, stored, strict=True):
            with writer.charge(self.part, info.name):
                for plane, flag in zip(own, flags, strict=True):
                    if flag:
                        writer.raw(plane.tobytes())
        coded = _order(stored)
        if coded:
            runs = [Run.of(planes[tensor][number].astype(np.int16)) for number, tensor in coded]
            accounts = [(self.part, self.infos[tensor].name) for _, tensor in coded]
            write_codes(writer, accounts, runs, self.coder, self.part)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> FloatSection:
        directory = context.directory
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a floats section of {count} tensors, the file has {len(directory)}")
        infos: list[TensorInfo] = []
        stored: list[list[bool]] = []
        for _ in range(count):
            with reader.charge_later() as entry:
                info = read_info(reader, directory, "a floats section")
                entry.account = (cls.part, info.name)
                if info.storage != "coded" or not is_real(info.dtype) or not info.numel:
                    raise reader.fail("unfit", f"{info.name}: in a floats section, and {info.storage}, {info.dtype}")
                if any(info is other for other in infos):
                    raise reader.fail("ownership", f"{info.name}: twice in a floats section")
                width, code = DTYPES[info.dtype].itemsize, reader.u8()
                if code >> width:
                    raise reader.fail("form", f"{info.name}: plane flags {code:#x} of values of {width} bytes")
                infos.append(info)
                stored.append([bool(code >> number & 1) for number in range(width)])
        planes: list[list[NDArray[np.uint8] | None]] = [[None] * len(flags) for flags in stored]
        for tensor, (info, flags) in enumerate(zip(infos, stored, strict=True)):
            with reader.charge(cls.part, info.name):
                for number, flag in enumerate(flags):
                    if flag:
                        planes[tensor][number] = np.frombuffer(reader.raw(info.numel), np.uint8)
        coded, coder = _order(stored), AUTO
        if coded:
            accounts = [(cls.part, infos[tensor].name) for _, tensor in coded]
            segments = [Segment.flat(infos[tensor].numel) for _, tensor in coded]
            runs, coder = read_codes(reader, accounts, segments, cls.part)
            for (number, tensor), run in zip(coded, runs, strict=True):
                if int(run.min()) < 0 or int(run.max()) > 255:
                    raise reader.fail("code", f"{infos[tensor].name}: a byte out of range")
                planes[tensor][number] = run.astype(np.uint8)
        reader.finish()
        values = {info.name: _joined(own, info) for info, own in zip(infos, planes, strict=True)}
        return cls(infos, values, coder)


def _order(stored: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
    """(plane, tensor) of each coded run: like planes stand together, so that they can share a table."""
    most = max(map(len, stored))
    return [(p, t) for p in range(most) for t, flags in enumerate(stored) if p < len(flags) and not flags[p]]


def _planes(values: NDArray[Any], info: TensorInfo) -> NDArray[np.uint8]:
    """(bytes of a value, values): the most significant byte first, after the turn."""
    width = DTYPES[info.dtype].itemsize
    words = np.frombuffer(value_bytes(values, info), f"<u{width}")
    turned = (words << 1) | (words >> (8 * width - 1))
    return turned.astype(f">u{width}").view(np.uint8).reshape(-1, width).T


def _joined(planes: Sequence[NDArray[np.uint8] | None], info: TensorInfo) -> NDArray[Any]:
    width = DTYPES[info.dtype].itemsize
    turned = np.stack([plane for plane in planes if plane is not None], axis=1).view(f">u{width}").reshape(-1)
    words = turned.astype(f"<u{width}")
    restored = (words >> 1) | (words << (8 * width - 1))
    return restored.view(DTYPES[info.dtype].carrier).reshape(info.shape)


def _entropy_bytes(plane: NDArray[np.uint8]) -> float:
    return Histogram.of(plane).entropy * plane.size / 8
