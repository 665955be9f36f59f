"""The grid section: tensors that are integer codes times a scale, entropy-coded.

A depthwise layer may be predicted by an earlier one of the section, in its integers and so without loss: kernel j by
kernel j mod c. The scale of a channel then acts as a gain that costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.coding import Histogram, Run, Segment
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import cast, is_real
from ilwp_plugin.format.integers import LARGEST_CODE, IntegerTensor, kernel_residual, kernel_sum, largest_magnitude
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section, Summary, read_info
from ilwp_plugin.format.sections.codes import read_codes, write_codes
from ilwp_plugin.format.stream import Account, ByteReader, ByteWriter, unzigzag, zigzag
from ilwp_plugin.ledger import register_part

__all__ = ["GridSection"]

_PER_AXIS, _ZERO_POINTS, _PREDICTED, _SAME_SCALE = 1, 2, 4, 8

_GRID = register_part(
    "grid", "Tensors that are in no chain but codes on a grid: codes, code tables, scales, names and shapes."
)


@SECTIONS.register("grid")
class GridSection(Section):
    """Tensors on grids.

    Attributes:
        infos: their entries in the directory, in order of prediction.
        values: their codes and scales, likewise.
        coder: name of the coder, or "auto".
    """

    number = 4
    name = "grid"
    single = False
    part = _GRID

    def __init__(self, infos: Sequence[TensorInfo], values: Sequence[IntegerTensor], coder: str) -> None:
        self.infos = tuple(infos)
        self.values = tuple(values)
        self.coder = coder

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {info.name: i for i, info in enumerate(self.infos)}

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.infos]

    def restore(self, name: str) -> NDArray[Any]:
        number = self._positions[name]
        info = self.infos[number]
        return cast(self.values[number].restore(), info.dtype).reshape(info.shape)

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
        return GridSection([i for i, _ in kept], [v for _, v in kept], self.coder) if kept else None

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
        write_codes(writer, _accounts(self.infos), runs, self.coder, _GRID)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> GridSection:
        directory = context.directory
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a grid section of {count} tensors, the file has {len(directory)}")
        infos: list[TensorInfo] = []
        heads: list[tuple[int, NDArray[np.float32], NDArray[np.int64] | None, int]] = []
        for _ in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory)
                entry.account = (_GRID, info.name)
                heads.append(_read_head(reader, info, heads[-1][1] if heads else None))
            infos.append(info)
        codes, coder = read_codes(reader, _accounts(infos), [_segment(info) for info in infos], _GRID)
        reader.finish()
        centred: list[NDArray[Any]] = []
        values: list[IntegerTensor] = []
        references = _references(infos)
        for i, (info, (flags, scale, zero_point, axis)) in enumerate(zip(infos, heads, strict=True)):
            own: NDArray[Any] = codes[i].reshape(info.shape)
            if flags & _PREDICTED:
                reference = references[i]
                if reference is None:
                    raise reader.fail(
                        "reference", f"{info.name}: predicted, but no earlier layer has kernels of its size"
                    )
                own = kernel_sum(own, centred[reference])
            if largest_magnitude(own) > LARGEST_CODE:
                raise reader.fail("code", f"{info.name}: a code beyond {LARGEST_CODE} in magnitude")
            centred.append(own)
            try:
                values.append(IntegerTensor.from_centred(own, scale, zero_point, axis))
            except TensorError as error:
                raise reader.fail("range", f"{info.name}: {error}") from None
            if not values[-1].fits(info.dtype):
                raise reader.fail("not-finite", f"{info.name}: restores to values that are not finite")
        return cls(infos, values, coder)


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


def _read_head(
    reader: ByteReader, info: TensorInfo, before: NDArray[np.float32] | None
) -> tuple[int, NDArray[np.float32], NDArray[np.int64] | None, int]:
    """Flags, scale, zero point and axis."""
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
        if before is None or before.ndim:
            raise reader.fail("form", f"{info.name}: shares its scale with nothing before it")
        scale = before
    else:
        scale = np.frombuffer(reader.raw(4 * number), "<f4")
        if not flags & _PER_AXIS:
            scale = scale.reshape(())
        if not bool((np.isfinite(scale) & ~np.signbit(scale)).all()):
            raise reader.fail("range", f"{info.name}: a scale that is not a finite number >= 0")
    zero_point = None
    if flags & _ZERO_POINTS:
        zero_point = np.array([unzigzag(reader.varint()) for _ in range(number)], np.int64).reshape(scale.shape)
    return flags, scale, zero_point, axis
