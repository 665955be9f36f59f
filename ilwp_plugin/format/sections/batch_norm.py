"""The batch-norm section: one scale and one shift a channel, as codes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.coding import Run, Segment
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import cast, is_finite, is_real
from ilwp_plugin.format.norms import MANTISSA_BITS, OCTAVES, ROLES, MergedBatchNorm
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section, Stored, Summary
from ilwp_plugin.format.sections.codes import Coding, StoredCodes, chosen_coder, write_codes
from ilwp_plugin.format.stream import Account, ByteReader, ByteWriter, unzigzag, zigzag
from ilwp_plugin.ledger import register_part

__all__ = ["BatchNormSection"]

_TRACKED, _SAME_EPS, _SCATTERED = 1, 2, 4

_CHANNEL_BYTES = 64
"""Memory that a channel takes while it is restored."""

_NORM = register_part("batch_norm", "Batch norms that are stored as one scale and one shift a channel.")


@SECTIONS.register("batch_norm")
class BatchNormSection(Section):
    """Merged batch norms.

    Attributes:
        infos: of each, its tensors in the directory in the order of ROLES; the last one may be missing.
        values: of each, its codes. All have the same number of mantissa bits.
        codings: how the scales are coded, and how the shifts are; see `sections.codes`.

    Args:
        coding: of both.
    """

    number = 5
    name = "batch_norm"
    checked_by_restoring = True
    part = _NORM

    def __init__(
        self, infos: Sequence[tuple[TensorInfo, ...]], values: Sequence[MergedBatchNorm], coding: Coding
    ) -> None:
        self.infos = tuple(infos)
        self.values: Sequence[MergedBatchNorm] = values
        self.codings = (coding, coding)
        self._where = self.name
        self._places = {info.name: (i, role) for i, own in enumerate(self.infos) for role, info in enumerate(own)}

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def restore(self, name: str) -> NDArray[Any]:
        norm, role = self._places[name]
        return self._restored(self.infos[norm][role], self.values[norm].restore(), ROLES[role])

    def restore_all(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for infos, value in zip(self.infos, self.values, strict=True):
            tensors = value.restore()
            for role, info in zip(ROLES, infos, strict=False):
                yield info.name, self._restored(info, tensors, role)

    def check(self) -> None:
        for _ in self.restore_all():
            pass

    def _restored(self, info: TensorInfo, tensors: Mapping[str, NDArray[Any]], role: str) -> NDArray[Any]:
        if role == ROLES[-1]:
            return tensors[role]
        value = cast(tensors[role], info.dtype)
        if not is_finite(value, info.dtype):
            raise FormatError(f"{self._where}: {info.name}: restores to values that are not finite", "not-finite")
        return value

    def summaries(self) -> list[Summary]:
        return [
            Summary(
                infos[0].name.removesuffix(".weight"),
                self.name,
                infos[0].shape,
                {
                    "channels": value.scale_codes.size,
                    "mantissa_bits": value.mantissa,
                    "shift_step": value.shift_step,
                    "tensors": [info.name for info in infos],
                },
            )
            for infos, value in zip(self.infos, self.values, strict=True)
        ]

    def without(self, names: Collection[str]) -> BatchNormSection | None:
        kept = [
            (infos, value)
            for infos, value in zip(self.infos, self.values, strict=True)
            if not any(info.name in names for info in infos)
        ]
        return (
            BatchNormSection([i for i, _ in kept], [v for _, v in kept], chosen_coder(self.codings[0]))
            if kept
            else None
        )

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        writer.varint(len(self.infos))
        writer.u8(self.values[0].mantissa)
        eps = None
        for infos, value in zip(self.infos, self.values, strict=True):
            with writer.charge(_NORM, infos[0].name):
                places = [position[info.name] for info in infos]
                scattered = places != list(range(places[0], places[0] + len(places)))
                flags = (_TRACKED if len(infos) == len(ROLES) else 0) | (_SCATTERED if scattered else 0)
                flags |= _SAME_EPS if value.eps == eps else 0
                writer.u8(flags)
                for place in places if scattered else places[:1]:
                    writer.varint(place)
                if value.eps != eps:
                    writer.f32(value.eps)
                writer.varint(zigzag(value.exponent))
                writer.f32(value.shift_step)
            eps = value.eps
        accounts = _accounts(self.infos)
        codes = ([v.scale_codes for v in self.values], [v.shift_codes for v in self.values])
        for own, coding in zip(codes, self.codings, strict=True):
            write_codes(writer, accounts, [Run.of(c) for c in own], coding, _NORM)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> BatchNormSection:
        directory = context.directory
        count, mantissa = reader.varint(), reader.u8()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a batch-norm section of {count} layers, the file has {len(directory)} tensors")
        if mantissa not in MANTISSA_BITS:
            raise reader.fail("range", f"scales of {mantissa} bits of mantissa")
        infos: list[tuple[TensorInfo, ...]] = []
        heads: list[tuple[int, float, float]] = []
        eps = math.nan
        for _ in range(count):
            with reader.charge_later() as entry:
                flags = reader.u8()
                if flags & ~(_TRACKED | _SAME_EPS | _SCATTERED) or (flags & _SAME_EPS and math.isnan(eps)):
                    raise reader.fail("form", f"unknown form {flags:#x} of a batch norm")
                number = len(ROLES) if flags & _TRACKED else len(ROLES) - 1
                first = reader.varint()
                places = [first] + [reader.varint() if flags & _SCATTERED else first + i for i in range(1, number)]
                infos.append(_tensors(reader, directory, places))
                entry.account = (_NORM, infos[-1][0].name)
                eps = eps if flags & _SAME_EPS else reader.f32()
                exponent, step = unzigzag(reader.varint()), reader.f32()
                if not (0 <= eps < 1 and math.isfinite(step) and math.copysign(1, step) > 0 and abs(exponent) <= 100):
                    raise reader.fail(
                        "range", f"{infos[-1][0].name}: eps {eps}, step {step} or exponent {exponent} out of range"
                    )
                heads.append((exponent, step, eps))
        if len({info.name for tensors in infos for info in tensors}) != sum(map(len, infos)):
            raise reader.fail("ownership", "a tensor belongs to two batch norms")
        accounts, segments = _accounts(infos), [Segment.flat(tensors[0].numel) for tensors in infos]
        scales = StoredCodes(reader, accounts, segments, _NORM, context.budget)
        shifts = StoredCodes(reader, accounts, segments, _NORM, context.budget)
        context.budget.hold(_CHANNEL_BYTES * sum(segment.count for segment in segments), "so many channels")
        reader.finish()
        section = cls(infos, _StoredNorms(infos, heads, mantissa, scales, shifts, reader.where), scales.coding)
        section.codings = (scales.coding, shifts.coding)
        section._where = reader.where
        return section


class _StoredNorms(Stored[MergedBatchNorm]):
    """The batch norms as they stand in a file; each is decoded when it is asked for."""

    def __init__(
        self,
        infos: Sequence[tuple[TensorInfo, ...]],
        heads: Sequence[tuple[int, float, float]],
        mantissa: int,
        scales: StoredCodes,
        shifts: StoredCodes,
        where: str,
    ) -> None:
        super().__init__(len(heads))
        self._infos, self._heads, self._mantissa = infos, heads, mantissa
        self._scales, self._shifts, self._where = scales, shifts, where

    def _decoded(self, number: int) -> MergedBatchNorm:
        exponent, step, eps = self._heads[number]
        scale = self._scales.layer(number)
        if max(-int(scale.min()), int(scale.max())) > OCTAVES << self._mantissa:
            name = self._infos[number][0].name
            raise FormatError(f"{self._where}: {name}: a scale out of range", "code")
        return MergedBatchNorm(scale, self._shifts.layer(number), exponent, self._mantissa, step, eps)


def _accounts(infos: Sequence[tuple[TensorInfo, ...]]) -> list[Account]:
    return [(_NORM, tensors[0].name) for tensors in infos]


def _tensors(reader: ByteReader, directory: Sequence[TensorInfo], places: Sequence[int]) -> tuple[TensorInfo, ...]:
    if max(places) >= len(directory):
        raise reader.fail("position", f"a batch norm refers to tensor {max(places)}, the file has {len(directory)}")
    infos = tuple(directory[place] for place in places)
    shape = infos[0].shape
    for role, info in zip(ROLES, infos, strict=False):
        if role == "num_batches_tracked":
            fits = info.shape == () and info.dtype == "int64"
        else:
            fits = info.shape == shape and len(shape) == 1 and info.numel > 0 and is_real(info.dtype)
        if info.storage != "coded" or not fits:
            raise reader.fail(
                "unfit", f"{info.name}: no {role} of a batch norm: {info.storage}, {info.dtype}, {info.shape}"
            )
    return infos
