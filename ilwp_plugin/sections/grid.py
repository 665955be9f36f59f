"""The grid section: tensors that are integer codes times a scale, entropy-coded.

A depthwise layer may be predicted by an earlier one of the section, in its integers and so without loss: kernel j by
kernel j mod c. The scale of a channel then acts as a gain that costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ilwp_plugin.coding import Histogram, Symbols
from ilwp_plugin.container import SectionBytes, SectionKind, TensorInfo
from ilwp_plugin.errors import TensorError
from ilwp_plugin.method.grid import LARGEST_CODE, IntegerTensor, kernel_residual, kernel_sum, largest_magnitude
from ilwp_plugin.sections.codes import read_codes, write_codes
from ilwp_plugin.sections.entries import read_info
from ilwp_plugin.stream import Account, ByteReader, ByteWriter, unzigzag, zigzag

__all__ = ["GridSection"]

_PER_AXIS, _ZERO_POINTS, _PREDICTED, _SAME_SCALE = 1, 2, 4, 8


@dataclass(frozen=True, eq=False)
class GridSection:
    """Tensors on grids.

    Attributes:
        infos: their entries in the directory, in order of prediction.
        values: their codes and scales, likewise.
        coder: name of the coder, or "auto".
    """

    infos: tuple[TensorInfo, ...]
    values: tuple[IntegerTensor, ...]
    coder: str

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {info.name: i for i, info in enumerate(self.infos)}

    @property
    def names(self) -> list[str]:
        """Of its tensors."""
        return [info.name for info in self.infos]

    def restore(self, name: str) -> Tensor:
        """A tensor, new, in its own dtype."""
        number = self._positions[name]
        info = self.infos[number]
        return self.values[number].restore().to(info.dtype).reshape(info.shape)

    def encode(self, directory: Sequence[TensorInfo]) -> SectionBytes:
        """The section's bytes, each charged."""
        position = {info.name: i for i, info in enumerate(directory)}
        writer = ByteWriter("grid")
        writer.varint(len(self.infos))
        codes: list[Symbols] = []
        scale: Tensor | None = None
        references = _references(self.infos)
        for info, value, reference in zip(self.infos, self.values, references, strict=True):
            own = value.centred
            predicted = None if reference is None else kernel_residual(own, self.values[reference].centred)
            flags = 0
            if predicted is not None and _cheaper(predicted, own):
                flags, own = _PREDICTED, predicted
            codes.append(own.numpy().ravel())
            with writer.charge("grid", info.name):
                writer.varint(position[info.name])
                flags |= _ZERO_POINTS if value.zero_point is not None else 0
                flags |= _PER_AXIS if value.scale.dim() else 0
                if not value.scale.dim() and scale is not None and torch.equal(value.scale, scale):
                    flags |= _SAME_SCALE
                writer.u8(flags)
                if flags & _PER_AXIS:
                    writer.varint(value.axis)
                if not flags & _SAME_SCALE:
                    writer.raw(value.scale.numpy().astype("<f4").tobytes())
                if value.zero_point is not None:
                    for zero_point in value.zero_point.reshape(-1).tolist():
                        writer.varint(zigzag(zero_point))
            scale = value.scale
        write_codes(writer, self._accounts(self.infos), codes, self.coder, "grid")
        return SectionBytes(SectionKind.GRID, [writer.getvalue()], writer.ledger)

    @staticmethod
    def _accounts(infos: Sequence[TensorInfo]) -> list[Account]:
        return [("grid", info.name) for info in infos]

    @classmethod
    def decode(cls, reader: ByteReader, directory: Sequence[TensorInfo]) -> GridSection:
        """The inverse of `encode`. Raises FormatError."""
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail(f"a grid section of {count} tensors, the file has {len(directory)}")
        infos: list[TensorInfo] = []
        heads: list[tuple[int, Tensor, Tensor | None, int]] = []
        for _ in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory)
                entry.account = ("grid", info.name)
                heads.append(_read_head(reader, info, heads[-1][1] if heads else None))
            infos.append(info)
        codes, coder = read_codes(reader, cls._accounts(infos), [info.numel for info in infos], "grid")
        reader.finish()
        centred: list[Tensor] = []
        values: list[IntegerTensor] = []
        references = _references(infos)
        for i, (info, (flags, scale, zero_point, axis)) in enumerate(zip(infos, heads, strict=True)):
            own = torch.from_numpy(codes[i]).reshape(info.shape)
            if flags & _PREDICTED:
                reference = references[i]
                if reference is None:
                    raise reader.fail(f"{info.name}: predicted, but no earlier layer has kernels of its size")
                own = kernel_sum(own, centred[reference])
            if largest_magnitude(own) > LARGEST_CODE:
                raise reader.fail(f"{info.name}: a code beyond {LARGEST_CODE} in magnitude")
            centred.append(own)
            try:
                values.append(IntegerTensor.from_centred(own, scale, zero_point, axis))
            except TensorError as error:
                raise reader.fail(f"{info.name}: {error}") from None
            if not values[-1].fits(info.dtype):
                raise reader.fail(f"{info.name}: restores to values that are not finite")
        return cls(tuple(infos), tuple(values), coder)


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


def _cheaper(residual: Tensor, codes: Tensor) -> bool:
    if largest_magnitude(residual) > LARGEST_CODE:
        return False
    return Histogram.of(residual.numpy()).entropy < Histogram.of(codes.numpy()).entropy


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo]) -> TensorInfo:
    info = read_info(reader, directory, "a grid section")
    if info.storage != "packed" or not info.dtype.is_floating_point or info.dtype.itemsize == 1 or not info.numel:
        raise reader.fail(f"{info.name}: a grid section holds a tensor that is {info.storage}, {info.dtype}")
    return info


def _read_head(reader: ByteReader, info: TensorInfo, before: Tensor | None) -> tuple[int, Tensor, Tensor | None, int]:
    """Flags, scale, zero point and axis."""
    flags = reader.u8()
    if flags & ~(_PER_AXIS | _ZERO_POINTS | _PREDICTED | _SAME_SCALE) or (flags & _PER_AXIS and flags & _SAME_SCALE):
        raise reader.fail(f"{info.name}: unknown form {flags:#x} of a grid")
    axis, number = 0, 1
    if flags & _PER_AXIS:
        axis = reader.varint()
        if axis >= len(info.shape) or info.shape[axis] < 2:
            raise reader.fail(f"{info.name}: scales along axis {axis} of shape {info.shape}")
        number = info.shape[axis]
    if flags & _SAME_SCALE:
        if before is None or before.dim():
            raise reader.fail(f"{info.name}: shares its scale with nothing before it")
        scale = before
    else:
        piece = reader.raw(4 * number)
        scale = torch.frombuffer(bytearray(piece), dtype=torch.float32)
        if not flags & _PER_AXIS:
            scale = scale.reshape(())
        if not bool((scale.isfinite() & ~scale.signbit()).all()):
            raise reader.fail(f"{info.name}: a scale that is not a finite number >= 0")
    zero_point = None
    if flags & _ZERO_POINTS:
        zero_point = torch.tensor([unzigzag(reader.varint()) for _ in range(number)])
    return flags, scale, zero_point, axis
