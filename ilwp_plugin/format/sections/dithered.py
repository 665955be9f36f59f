"""The dithered section: tensors on a lattice that a random dither, drawn from a seed in the file, has moved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError, TensorError
from ilwp_plugin.format.coding import Histogram, Run, Segment
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dither import GENERATORS, dither
from ilwp_plugin.format.dtypes import DTYPES, cast, is_finite, is_real
from ilwp_plugin.format.integers import LARGEST_CODE, largest_magnitude
from ilwp_plugin.format.sections.base import SECTIONS, Context, Stored, Summary, TensorSection, read_info
from ilwp_plugin.format.sections.codes import Coding, StoredCodes, chosen_coder, write_codes
from ilwp_plugin.format.stream import ByteReader, ByteWriter, unzigzag, zigzag
from ilwp_plugin.ledger import register_part

__all__ = ["DitheredSection", "DitheredTensor", "Lattice"]

_DITHERED = register_part("dithered", "Dithered tensors: codes, code tables, seed, names and shapes.")
_LEVELS = register_part("levels", "Levels of dithered tensors that have been trained.")

_MAX_LEVELS = 1 << 15
_CHUNK = 1 << 16
"""Values that are computed at one time."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """What all tensors of a section share.

    Attributes:
        seed: of the dither, below 2^64.
        lowest: the code of the first level.
        levels: (n,) float32, what codes from the lowest on stand for, in steps; empty where each code is its own level.
    """

    seed: int
    lowest: int = 0
    levels: NDArray[np.float32] | None = None

    def check(self, fail: Any) -> None:
        """Raises what `fail` makes of a code and a message."""
        if self.levels is None:
            return
        if not (1 <= len(self.levels) <= _MAX_LEVELS and abs(self.lowest) <= LARGEST_CODE):
            raise fail("range", f"{len(self.levels)} levels from code {self.lowest} on")
        if not np.isfinite(self.levels).all() or (np.signbit(self.levels) & (self.levels == 0)).any():
            raise fail("range", "a level that is NaN, infinite or -0")

    def holds(self, codes: NDArray[Any]) -> bool:
        """Whether some codes are 0 or have a level."""
        if largest_magnitude(codes) > LARGEST_CODE:
            return False
        if self.levels is None:
            return True
        places = codes.astype(np.int64) - self.lowest
        return bool(((codes == 0) | ((places >= 0) & (places < len(self.levels)))).all())

    def values(self, codes: NDArray[Any], step: np.float32, stream: int, start: int) -> NDArray[np.float32]:
        """float32 values of consecutive codes of a tensor, from a place on.

        Args:
            codes: integers, 1-D.
            step: of the lattice.
            stream: number of the tensor's stream of random numbers.
            start: place of the first code in the tensor.
        """
        if self.levels is None:
            levels = codes.astype(np.float32)
        else:
            levels = self.levels[np.where(codes == 0, 0, codes.astype(np.int64) - self.lowest)]
        with np.errstate(over="ignore"):
            moved = (levels - dither(self.seed, stream, start, len(codes))) * step
        return np.where(codes == 0, np.float32(0), moved + np.float32(0))


@dataclass(frozen=True, eq=False)
class DitheredTensor:
    """A tensor as codes.

    Attributes:
        info: its entry in the directory.
        step: distance of two points of its lattice, in units of value; float32.
        stream: number of its dither.
        codes: in the tensor's shape, integers.
    """

    info: TensorInfo
    step: float
    stream: int
    codes: NDArray[Any]


@SECTIONS.register("dithered")
class DitheredSection(TensorSection):
    """Dithered tensors.

    Attributes:
        lattice: what they share.
        tensors: in the order of the file.
        coding: how the codes are coded; a coder's name, or "auto".

    Raises:
        TensorError: something that a file cannot hold.
    """

    number = 12
    name = "dithered"
    part = _DITHERED

    def __init__(self, lattice: Lattice, tensors: Sequence[DitheredTensor], coding: Coding) -> None:
        self.lattice, self.coding = lattice, coding
        self.tensors: Sequence[DitheredTensor] = tuple(tensors)
        self.infos = tuple(tensor.info for tensor in tensors)
        lattice.check(lambda code, what: TensorError(f"dithered tensors: {what}"))
        for tensor in self.tensors:
            if not _good_step(tensor.step) or tensor.codes.size != tensor.info.numel:
                raise TensorError(f"{tensor.info.name}: {tensor.codes.size} codes of step {tensor.step}")
            if not lattice.holds(tensor.codes):
                raise TensorError(f"{tensor.info.name}: a code that has no level")
            if not is_finite(self.restore(tensor.info.name), tensor.info.dtype):
                raise TensorError(f"{tensor.info.name}: restores to values that are not finite")

    def restore(self, name: str) -> NDArray[Any]:
        number = self._positions[name]
        if isinstance(self.tensors, _StoredTensors):
            return self.tensors.restore(number)
        tensor = self.tensors[number]
        values = self.lattice.values(tensor.codes.reshape(-1), np.float32(tensor.step), tensor.stream, 0)
        return cast(values, tensor.info.dtype).reshape(tensor.info.shape)

    def check(self) -> None:
        if isinstance(self.tensors, _StoredTensors):
            for number in range(len(self.tensors)):
                for _ in self.tensors.pieces(number):
                    pass

    def summaries(self) -> list[Summary]:
        found = []
        for tensor in self.tensors:
            details = {
                "step": tensor.step,
                "levels": 0 if self.lattice.levels is None else len(self.lattice.levels),
                "zeros": float((tensor.codes == 0).mean()),
                "entropy": Histogram.of(tensor.codes).entropy,
            }
            found.append(Summary(tensor.info.name, self.name, tensor.info.shape, details))
        return found

    def without(self, names: Collection[str]) -> DitheredSection | None:
        kept = [tensor for tensor in self.tensors if tensor.info.name not in names]
        return DitheredSection(self.lattice, kept, chosen_coder(self.coding)) if kept else None

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        writer.u8(1)
        writer.raw(self.lattice.seed.to_bytes(8, "little"))
        levels = self.lattice.levels
        with writer.charge(_LEVELS, None):
            writer.varint(0 if levels is None else len(levels))
            if levels is not None:
                writer.varint(zigzag(self.lattice.lowest))
                writer.raw(np.ascontiguousarray(levels, "<f4").tobytes())
        writer.varint(len(self.tensors))
        for tensor in self.tensors:
            with writer.charge(_DITHERED, tensor.info.name):
                writer.varint(position[tensor.info.name])
                writer.f32(tensor.step)
                writer.varint(tensor.stream)
        runs = [Run.of(tensor.codes.reshape(-1).astype(np.int16), _segment(tensor.info)) for tensor in self.tensors]
        accounts = [(_DITHERED, tensor.info.name) for tensor in self.tensors]
        write_codes(writer, accounts, runs, self.coding, _DITHERED)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> DitheredSection:
        directory = context.directory
        generator = reader.u8()
        if generator not in GENERATORS:
            raise reader.fail("form", f"dither of an unknown generator {generator}")
        lattice = _read_lattice(reader, int.from_bytes(reader.raw(8), "little"))
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a dithered section of {count} tensors, the file has {len(directory)}")
        heads: list[_Head] = []
        names: set[str] = set()
        for _ in range(count):
            with reader.charge_later() as entry:
                info = read_info(reader, directory, "a dithered section")
                entry.account = (_DITHERED, info.name)
                if info.storage != "coded" or not is_real(info.dtype) or not info.numel:
                    raise reader.fail("unfit", f"{info.name}: in a dithered section, and {info.storage}, {info.dtype}")
                if info.name in names:
                    raise reader.fail("ownership", f"{info.name}: twice in a dithered section")
                names.add(info.name)
                step = reader.f32()
                if not _good_step(step):
                    raise reader.fail("range", f"{info.name}: a step of {step}")
                heads.append(_Head(info, step, reader.varint()))
        accounts = [(_DITHERED, head.info.name) for head in heads]
        segments = [_segment(head.info) for head in heads]
        codes = StoredCodes(reader, accounts, segments, _DITHERED, context.budget)
        reader.finish()
        section = cls.__new__(cls)
        section.lattice, section.coding = lattice, codes.coding
        section.infos = tuple(head.info for head in heads)
        section.tensors = _StoredTensors(heads, lattice, codes, reader.where)
        return section


@dataclass(frozen=True)
class _Head:
    """What is stored of a tensor besides its codes."""

    info: TensorInfo
    step: float
    stream: int


def _good_step(step: float) -> bool:
    return bool(np.isfinite(np.float32(step))) and step > 0


def _segment(info: TensorInfo) -> Segment:
    return Segment(info.numel, info.shape)


def _read_lattice(reader: ByteReader, seed: int) -> Lattice:
    with reader.charge(_LEVELS, None):
        count = reader.varint()
        if not count:
            return Lattice(seed)
        lowest = unzigzag(reader.varint())
        if count > _MAX_LEVELS:
            raise reader.fail("range", f"{count} levels from code {lowest} on")
        levels = np.frombuffer(reader.raw(4 * count), "<f4")
    lattice = Lattice(seed, lowest, levels)
    lattice.check(reader.fail)
    return lattice


class _StoredTensors(Stored[DitheredTensor]):
    """The tensors as they stand in a file; each is decoded when it is asked for."""

    def __init__(self, heads: Sequence[_Head], lattice: Lattice, codes: StoredCodes, where: str) -> None:
        super().__init__(len(heads))
        self._heads, self._lattice, self._codes, self._where = heads, lattice, codes, where

    def _decoded(self, number: int) -> DitheredTensor:
        head = self._heads[number]
        codes = self._codes.layer(number).reshape(head.info.shape)
        return DitheredTensor(head.info, head.step, head.stream, codes)

    def pieces(self, number: int) -> Iterator[NDArray[Any]]:
        """The values of a tensor in its dtype, some at a time."""
        head, at = self._heads[number], 0
        for piece in self._codes.pieces(number):
            for start in range(0, len(piece), _CHUNK):
                codes = piece[start : start + _CHUNK]
                if not self._lattice.holds(codes):
                    raise self._fail(head.info, "code", "a code that has no level")
                values = cast(self._lattice.values(codes, np.float32(head.step), head.stream, at), head.info.dtype)
                if not is_finite(values, head.info.dtype):
                    raise self._fail(head.info, "not-finite", "restores to values that are not finite")
                at += len(codes)
                yield values

    def restore(self, number: int) -> NDArray[Any]:
        """The values of a tensor."""
        info = self._heads[number].info
        restored = np.empty(info.numel, DTYPES[info.dtype].carrier)
        at = 0
        for values in self.pieces(number):
            restored[at : at + len(values)] = values
            at += len(values)
        return restored.reshape(info.shape)

    def _fail(self, info: TensorInfo, code: str, what: str) -> FormatError:
        return FormatError(f"{self._where}: {info.name}: {what}", code)
