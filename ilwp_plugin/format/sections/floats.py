"""The floats section: floating-point tensors as they are, byte by byte: exponents repeat, mantissas do not.

The bits of a value are turned left by one, so that the sign goes to the end and the exponent fills the first byte. The
first bytes of all values, then the second ones, and so on, are coded like codes where that saves something, and stored
where it does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.coding import AUTO, Histogram, Run, Segment
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import DTYPES, is_real
from ilwp_plugin.format.packing import MOST_TRIED
from ilwp_plugin.format.sections.base import SECTIONS, Context, Summary, TensorSection, read_info, value_bytes
from ilwp_plugin.format.sections.codes import (
    SMALLEST,
    Coding,
    Group,
    StoredCodes,
    chosen_coder,
    smallest,
    write_codes,
)
from ilwp_plugin.format.spool import Spool
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["FloatSection"]

_WORTH = 0.97
"""A plane of bytes is coded where its entropy says that it takes less than this share of its size."""

_TABLE_BYTES = 24
"""About what a tensor's share of code tables takes."""

_MUCH = 1 << 26
"""Values whose bytes are kept in a file until they are encoded."""


_CHUNK = 1 << 16
"""Values that are put together at one time."""


@SECTIONS.register("floats")
class FloatSection(TensorSection):
    """Floating-point tensors of 16 bits or more, bit for bit.

    Attributes:
        infos: their entries in the directory, in its order.
        values: by name; of any dtype with as many bytes as theirs.
        coding: how planes are coded; see `sections.codes`. SMALLEST is allowed, too.
    """

    number = 9
    name = "floats"
    lossless = True

    def __init__(self, infos: Sequence[TensorInfo], values: Mapping[str, NDArray[Any]], coding: Coding = AUTO) -> None:
        self.infos = tuple(infos)
        self.values: Mapping[str, NDArray[Any]] = values
        self.coding = coding
        self._flags: Sequence[Sequence[bool]] | None = None

    def restore(self, name: str) -> NDArray[Any]:
        return self.values[name] if isinstance(self.values, _Stored) else self.values[name].copy()

    def restore_all(self) -> Iterator[tuple[str, NDArray[Any]]]:
        if isinstance(self.values, _Stored):
            yield from self.values.all()
        else:
            yield from super().restore_all()

    def check(self) -> None:
        if isinstance(self.values, _Stored):
            self.values.check()

    def summaries(self) -> list[Summary]:
        return [Summary(info.name, self.name, info.shape, {"dtype": info.dtype}) for info in self.infos]

    def without(self, names: Collection[str]) -> FloatSection | None:
        infos = [info for info in self.infos if info.name not in names]
        values = {info.name: self.values[info.name] for info in infos}
        return FloatSection(infos, values, chosen_coder(self.coding)) if infos else None

    @staticmethod
    def size(info: TensorInfo, values: NDArray[Any]) -> float | None:
        """About the bytes that a tensor would take; None where it cannot be in such a section."""
        if not is_real(info.dtype) or not info.numel:
            return None
        planes = _planes(values, info)
        return _TABLE_BYTES + sum(min(_entropy_bytes(plane), len(plane)) for plane in planes)

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        stored = self._flags or [
            [_entropy_bytes(plane) > _WORTH * len(plane) for plane in _planes(self.values[info.name], info)]
            for info in self.infos
        ]
        if self.coding != SMALLEST:
            self._write(writer, directory, stored, self.coding)
            return
        ways: list[tuple[Sequence[Sequence[bool]], Coding]] = [(stored, AUTO)]
        if sum(info.nbytes for info in self.infos) <= MOST_TRIED:
            widths = [len(flags) for flags in stored]
            groups = [Group(sum(width > plane for width in widths), "lzma", 0) for plane in range(max(widths))]
            ways.append(([[False] * width for width in widths], tuple(groups)))
        self._write(writer, directory, *smallest(ways, lambda trial, way: self._write(trial, directory, *way)))

    def _write(
        self,
        writer: ByteWriter,
        directory: Sequence[TensorInfo],
        stored: Sequence[Sequence[bool]],
        coding: Coding,
    ) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        writer.varint(len(self.infos))
        for info, flags in zip(self.infos, stored, strict=True):
            with writer.charge(self.part, info.name):
                writer.varint(position[info.name])
                writer.u8(sum(flag << number for number, flag in enumerate(flags)))
        for info, flags in zip(self.infos, stored, strict=True):
            if any(flags):
                with writer.charge(self.part, info.name):
                    for plane, flag in zip(_planes(self.values[info.name], info), flags, strict=True):
                        if flag:
                            writer.raw(plane.tobytes())
        coded = _order(stored)
        if coded:
            spool = Spool() if sum(self.infos[tensor].numel for _, tensor in coded) > _MUCH else None
            runs = []
            for number, tensor in coded:
                info = self.infos[tensor]
                plane = _planes(self.values[info.name], info)[number].astype(np.int16)
                segment = Segment.rows(len(plane), info.shape)
                runs.append(Run.of(plane if spool is None else spool.store(plane), segment))
            accounts = [(self.part, self.infos[tensor].name) for _, tensor in coded]
            write_codes(writer, accounts, runs, coding, self.part)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> FloatSection:
        directory = context.directory
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a floats section of {count} tensors, the file has {len(directory)}")
        infos: list[TensorInfo] = []
        stored: list[list[bool]] = []
        names: set[str] = set()
        for _ in range(count):
            with reader.charge_later() as entry:
                info = read_info(reader, directory, "a floats section")
                entry.account = (cls.part, info.name)
                if info.storage != "coded" or not is_real(info.dtype) or not info.numel:
                    raise reader.fail("unfit", f"{info.name}: in a floats section, and {info.storage}, {info.dtype}")
                if info.name in names:
                    raise reader.fail("ownership", f"{info.name}: twice in a floats section")
                width, code = DTYPES[info.dtype].itemsize, reader.u8()
                if code >> width:
                    raise reader.fail("form", f"{info.name}: plane flags {code:#x} of values of {width} bytes")
                infos.append(info)
                names.add(info.name)
                stored.append([bool(code >> number & 1) for number in range(width)])
        planes: dict[tuple[int, int], memoryview] = {}
        for tensor, (info, flags) in enumerate(zip(infos, stored, strict=True)):
            with reader.charge(cls.part, info.name):
                planes.update({(n, tensor): reader.raw(info.numel) for n, flag in enumerate(flags) if flag})
        coded = _order(stored)
        accounts = [(cls.part, infos[tensor].name) for _, tensor in coded]
        segments = [Segment.flat(infos[tensor].numel) for _, tensor in coded]
        codes = StoredCodes(reader, accounts, segments, cls.part, context.budget)
        reader.finish()
        runs = {place: number for number, place in enumerate(coded)}
        section = cls(infos, _Stored(infos, planes, runs, codes, reader.where), codes.coding)
        section._flags = stored  # the groups of the coding are those of the planes that another writer has coded
        return section


class _Stored(Mapping[str, NDArray[Any]]):
    """The tensors as they stand in a file; each is made when it is asked for.

    Args:
        infos: of the tensors.
        planes: by plane and tensor, those that are stored as they are.
        runs: by plane and tensor, which codes the others are.
        codes: of these.
        where: in words.
    """

    def __init__(
        self,
        infos: Sequence[TensorInfo],
        planes: Mapping[tuple[int, int], memoryview],
        runs: Mapping[tuple[int, int], int],
        codes: StoredCodes,
        where: str,
    ) -> None:
        self._infos, self._numbers = infos, {info.name: number for number, info in enumerate(infos)}
        self._planes, self._runs, self._codes, self._where = planes, runs, codes, where

    def __len__(self) -> int:
        return len(self._infos)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor = self._numbers[name]
        words = self._empty(tensor)
        for plane in range(words.itemsize):
            self._fill(words, plane, tensor)
        return self._finished(words, tensor)

    def all(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Every tensor, the codes decoded in the order in which they stand."""
        words = [self._empty(tensor) for tensor in range(len(self))]
        for plane, tensor in [*self._planes, *self._runs]:
            self._fill(words[tensor], plane, tensor)
        for tensor, info in enumerate(self._infos):
            yield info.name, self._finished(words[tensor], tensor)

    def check(self) -> None:
        """Raises FormatError where a byte is none."""
        for plane, tensor in self._runs:
            for _ in self._pieces(plane, tensor):
                pass

    def _empty(self, tensor: int) -> NDArray[Any]:
        info = self._infos[tensor]
        return np.zeros(info.numel, f"<u{DTYPES[info.dtype].itemsize}")

    def _fill(self, words: NDArray[Any], plane: int, tensor: int) -> None:
        shift, at = words.dtype.type(8 * (words.itemsize - 1 - plane)), 0
        for piece in self._pieces(plane, tensor):
            words[at : at + len(piece)] |= piece.astype(words.dtype) << shift
            at += len(piece)

    def _finished(self, words: NDArray[Any], tensor: int) -> NDArray[Any]:
        info = self._infos[tensor]
        for start in range(0, info.numel, _CHUNK):
            part = words[start : start + _CHUNK]
            part[:] = (part >> 1) | (part << (8 * words.itemsize - 1))
        return words.view(DTYPES[info.dtype].carrier).reshape(info.shape)

    def _pieces(self, plane: int, tensor: int) -> Iterator[NDArray[Any]]:
        info = self._infos[tensor]
        if (plane, tensor) in self._planes:
            whole = np.frombuffer(self._planes[plane, tensor], np.uint8)
            yield from (whole[start : start + _CHUNK] for start in range(0, info.numel, _CHUNK))
            return
        for piece in self._codes.pieces(self._runs[plane, tensor]):
            for start in range(0, len(piece), _CHUNK):
                part = piece[start : start + _CHUNK]
                if int(part.min()) < 0 or int(part.max()) > 255:
                    raise FormatError(f"{self._where}: {info.name}: a byte out of range", "code")
                yield part


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


def _entropy_bytes(plane: NDArray[np.uint8]) -> float:
    return Histogram.of(plane).entropy * plane.size / 8
