"""The grid section: tensors that are integer codes times a scale, entropy-coded.

A depthwise layer may be predicted by an earlier one of the section, in its integers and so without loss: kernel j by
kernel j mod c. The scale of a channel then acts as a gain that costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.coding import Histogram, Run, Segment
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import DTYPES, cast, is_finite, is_real, largest_value
from ilwp_plugin.format.integers import LARGEST_CODE, IntegerTensor, kernel_residual, kernel_sum, largest_magnitude
from ilwp_plugin.format.sections.base import SECTIONS, Context, Stored, Summary, TensorSection, read_info
from ilwp_plugin.format.sections.codes import Coding, StoredCodes, chosen_coder, write_codes
from ilwp_plugin.format.stream import Account, ByteReader, ByteWriter, unzigzag, zigzag
from ilwp_plugin.ledger import register_part

__all__ = ["GridSection"]

_PER_AXIS, _ZERO_POINTS, _PREDICTED, _SAME_SCALE = 1, 2, 4, 8

_PREDICTED_BYTES = 16
"""Memory of a value of a tensor that is predicted or predicts, while it is decoded."""

_CHUNK = 1 << 16
"""Values that are computed at one time."""

_GRID = register_part(
    "grid", "Tensors that are in no chain but codes on a grid: codes, code tables, scales, names and shapes."
)


@SECTIONS.register("grid")
class GridSection(TensorSection):
    """Tensors on grids.

    Attributes:
        infos: their entries in the directory, in order of prediction.
        values: their codes and scales, likewise.
        coding: how they are coded; see `sections.codes`.
    """

    number = 4
    name = "grid"
    checked_by_restoring = True
    part = _GRID

    def __init__(self, infos: Sequence[TensorInfo], values: Sequence[IntegerTensor], coding: Coding) -> None:
        self.infos = tuple(infos)
        self.values: Sequence[IntegerTensor] = values
        self.coding = coding

    def restore(self, name: str) -> NDArray[Any]:
        number = self._positions[name]
        info = self.infos[number]
        if isinstance(self.values, _StoredValues):
            return self.values.restore(number)
        return self.values[number].restore_as(info.dtype).reshape(info.shape)

    def check(self) -> None:
        if isinstance(self.values, _StoredValues):
            self.values.check()

    def summaries(self) -> list[Summary]:
        found = []
        for info, value in zip(self.infos, self.values, strict=True):
            centred = value.centred
            details = {
                "step": float(value.scale.reshape(-1)[0]),
                "steps": value.scale.size,
                "zeros": float((centred == 0).mean()),
                "entropy": Histogram.of(centred).entropy,
            }
            found.append(Summary(info.name, self.name, info.shape, details))
        return found

    def without(self, names: Collection[str]) -> GridSection | None:
        kept = [(i, v) for i, v in zip(self.infos, self.values, strict=True) if i.name not in names]
        return GridSection([i for i, _ in kept], [v for _, v in kept], chosen_coder(self.coding)) if kept else None

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        writer.varint(len(self.infos))
        runs: list[Run] = []
        scale: NDArray[np.float32] | None = None
        references = _references(self.infos)
        for info, value, reference in zip(self.infos, self.values, references, strict=True):
            own: NDArray[Any] = value.centred
            predicted = None if reference is None else kernel_residual(own, self.values[reference].centred)
            flags = 0
            if predicted is not None and _cheaper(predicted, own):
                flags, own = _PREDICTED, predicted
            runs.append(Run.of(own.ravel(), _segment(info)))
            with writer.charge(_GRID, info.name):
                writer.varint(position[info.name])
                flags |= _ZERO_POINTS if value.zero_point is not None else 0
                flags |= _PER_AXIS if value.scale.ndim else 0
                if not value.scale.ndim and scale is not None and not scale.ndim and value.scale == scale:
                    flags |= _SAME_SCALE
                writer.u8(flags)
                if flags & _PER_AXIS:
                    writer.varint(value.axis)
                if not flags & _SAME_SCALE:
                    writer.raw(value.scale.astype("<f4").tobytes())
                if value.zero_point is not None:
                    for zero_point in value.zero_point.reshape(-1).tolist():
                        writer.varint(zigzag(zero_point))
            scale = value.scale
        write_codes(writer, _accounts(self.infos), runs, self.coding, _GRID)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> GridSection:
        directory = context.directory
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a grid section of {count} tensors, the file has {len(directory)}")
        infos: list[TensorInfo] = []
        heads: list[_Head] = []
        for _ in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory)
                entry.account = (_GRID, info.name)
                heads.append(_read_head(reader, info, heads[-1] if heads else None, context.budget))
            infos.append(info)
        for info, head, reference in zip(infos, heads, _references(infos), strict=True):
            if head.predicted and reference is None:
                raise reader.fail("reference", f"{info.name}: predicted, but no earlier layer has kernels of its size")
        segments = [_segment(info) for info in infos]
        codes = StoredCodes(reader, _accounts(infos), segments, _GRID, context.budget)
        reader.finish()
        values = _StoredValues(infos, heads, codes, context.budget, reader.where)
        return cls(infos, values, codes.coding)


@dataclass(frozen=True)
class _Head:
    """What is stored of a tensor besides its codes: see IntegerTensor."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64] | None
    axis: int
    predicted: bool


class _StoredValues(Stored[IntegerTensor]):
    """The tensors as they stand in a file; each is decoded when it is asked for."""

    def __init__(
        self,
        infos: Sequence[TensorInfo],
        heads: Sequence[_Head],
        codes: StoredCodes,
        budget: Budget,
        where: str,
    ) -> None:
        super().__init__(len(infos))
        self._infos, self._heads, self._codes, self._budget, self._where = infos, heads, codes, budget, where
        self._reference = _references(infos)
        predicting = {self._reference[i] for i, head in enumerate(heads) if head.predicted}
        self._predicting = [i in predicting for i in range(len(infos))]
        self._kept: dict[int, NDArray[Any]] = {}

    def _decoded(self, number: int) -> IntegerTensor:
        head, info = self._heads[number], self._infos[number]
        own = np.concatenate(list(self._centred(number))).reshape(info.shape)
        return IntegerTensor.from_centred(own, head.scale, head.zero_point, head.axis)

    def restore(self, number: int) -> NDArray[Any]:
        """The values of a tensor in its dtype."""
        info = self._infos[number]
        restored = np.empty(info.numel, DTYPES[info.dtype].carrier)
        at = 0
        for own in self._centred(number):
            restored[at : at + len(own)] = self._values(number, own, at)
            at += len(own)
        return restored.reshape(info.shape)

    def check(self) -> None:
        """Raises FormatError where a code or a value is out of range."""
        for number in range(len(self)):
            info, head = self._infos[number], self._heads[number]
            safe = LARGEST_CODE * float(head.scale.max()) <= largest_value(info.dtype)
            at = 0
            for own in self._centred(number):
                if not safe:
                    self._values(number, own, at)
                at += len(own)

    def _values(self, number: int, own: NDArray[Any], at: int) -> NDArray[Any]:
        """Codes less zero points, from a position on, times their scale, in the tensor's dtype."""
        info, head = self._infos[number], self._heads[number]
        with np.errstate(over="ignore"):
            values = cast(own.astype(np.float32) * self._along(number, head.scale, at, len(own)), info.dtype)
        if not is_finite(values, info.dtype):
            raise self._fail(number, "not-finite", "restores to values that are not finite")
        return values

    def _along(self, number: int, values: NDArray[Any], at: int, count: int) -> NDArray[Any]:
        """What belongs to each of some elements, counted in row-major order: one number, or one for each."""
        if values.ndim == 0:
            return values
        shape, axis = self._infos[number].shape, self._heads[number].axis
        inner = math.prod(shape[axis + 1 :])  # so many elements in a row have the same index
        rows = np.arange(at // inner, (at + count - 1) // inner + 1)
        ends = np.minimum((rows + 1) * inner, at + count)
        return np.repeat(values[rows % shape[axis]], np.diff(ends, prepend=at))

    def _centred(self, number: int) -> Iterator[NDArray[Any]]:
        """Codes less zero points, prediction added, checked; in pieces."""
        head, info, pieces = self._heads[number], self._infos[number], self._codes.pieces(number)
        whole: list[NDArray[Any]] = []
        if head.predicted or self._predicting[number]:
            self._budget.borrow(_PREDICTED_BYTES * info.numel, "a predicted tensor")
        if head.predicted:
            reference = self._centred_of(self._reference[number] or 0)
            pieces = iter([kernel_sum(np.concatenate(list(pieces)).reshape(info.shape), reference).ravel()])
        at = 0
        for piece in pieces:
            for start in range(0, len(piece), _CHUNK):
                own = piece[start : start + _CHUNK]
                self._check(number, own, at)
                at += len(own)
                if self._predicting[number]:
                    whole.append(own.astype(np.int16))
                yield own
        if self._predicting[number]:
            self._remember(number, np.concatenate(whole).reshape(info.shape))

    def _check(self, number: int, own: NDArray[Any], at: int) -> None:
        zero_point = self._heads[number].zero_point
        if largest_magnitude(own) > LARGEST_CODE:
            raise self._fail(number, "code", f"a code beyond {LARGEST_CODE} in magnitude")
        if zero_point is not None:
            codes = own.astype(np.int64) + self._along(number, zero_point, at, len(own))
            if largest_magnitude(codes) > LARGEST_CODE:
                raise self._fail(number, "code", f"a code beyond {LARGEST_CODE} in magnitude")

    def _centred_of(self, number: int) -> NDArray[Any]:
        """Of a tensor that predicts others."""
        path = [number]
        while path[-1] not in self._kept and self._heads[path[-1]].predicted:
            path.append(self._reference[path[-1]] or 0)
        for i in reversed(path):
            if i not in self._kept:
                for _ in self._centred(i):
                    pass
        return self._kept[number]

    def _remember(self, number: int, centred: NDArray[Any]) -> None:
        """Keep it as long as there is room; at least until the next of the same kernel size."""
        if number in self._kept:
            return
        if not self._budget.keep(centred.nbytes):
            size = centred.shape[2:]
            self._kept = {i: other for i, other in self._kept.items() if other.shape[2:] != size}
        self._kept[number] = centred

    def _fail(self, number: int, code: str, what: str) -> FormatError:
        return FormatError(f"{self._where}: {self._infos[number].name}: {what}", code)


def _accounts(infos: Sequence[TensorInfo]) -> list[Account]:
    return [(_GRID, info.name) for info in infos]


def _segment(info: TensorInfo) -> Segment:
    return Segment(info.numel, info.shape)


def _references(infos: Sequence[TensorInfo]) -> list[int | None]:
    """Of each tensor the latest earlier one that can predict it: depthwise layers with one kernel size."""
    latest: dict[tuple[int, ...], int] = {}
    references: list[int | None] = []
    for i, info in enumerate(infos):
        depthwise = len(info.shape) == 4 and info.shape[1] == 1 and info.shape[2] * info.shape[3] > 1
        references.append(latest.get(info.shape[2:]) if depthwise else None)
        if depthwise:
            latest[info.shape[2:]] = i
    return references


def _cheaper(residual: NDArray[Any], codes: NDArray[Any]) -> bool:
    if largest_magnitude(residual) > LARGEST_CODE:
        return False
    return Histogram.of(residual).entropy < Histogram.of(codes).entropy


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo]) -> TensorInfo:
    info = read_info(reader, directory, "a grid section")
    if info.storage != "coded" or not is_real(info.dtype) or not info.numel:
        raise reader.fail("unfit", f"{info.name}: a grid section holds a tensor that is {info.storage}, {info.dtype}")
    return info


def _read_head(reader: ByteReader, info: TensorInfo, before: _Head | None, budget: Budget) -> _Head:
    flags = reader.u8()
    if flags & ~(_PER_AXIS | _ZERO_POINTS | _PREDICTED | _SAME_SCALE) or (flags & _PER_AXIS and flags & _SAME_SCALE):
        raise reader.fail("form", f"{info.name}: unknown form {flags:#x} of a grid")
    axis, number = 0, 1
    if flags & _PER_AXIS:
        axis = reader.varint()
        if axis >= len(info.shape) or info.shape[axis] < 2:
            raise reader.fail("form", f"{info.name}: scales along axis {axis} of shape {info.shape}")
        number = info.shape[axis]
    if flags & _SAME_SCALE:
        if before is None or before.scale.ndim:
            raise reader.fail("form", f"{info.name}: shares its scale with nothing before it")
        scale = before.scale
    else:
        scale = np.frombuffer(reader.raw(4 * number), "<f4")
        if not flags & _PER_AXIS:
            scale = scale.reshape(())
        if not bool((np.isfinite(scale) & ~np.signbit(scale)).all()):
            raise reader.fail("range", f"{info.name}: a scale that is not a finite number >= 0")
    zero_point = None
    if flags & _ZERO_POINTS:
        if number > reader.remaining:
            raise reader.fail("too-short", f"{info.name}: {number} zero points in {reader.remaining} bytes")
        budget.hold(8 * number, "zero points")
        found = [unzigzag(reader.varint()) for _ in range(number)]
        if max(map(abs, found)) > LARGEST_CODE:
            raise reader.fail("range", f"{info.name}: a zero point beyond {LARGEST_CODE} in magnitude")
        zero_point = np.array(found, np.int64).reshape(scale.shape)
    return _Head(scale, zero_point, axis, bool(flags & _PREDICTED))
