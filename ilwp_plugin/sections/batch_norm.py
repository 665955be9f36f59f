"""The batch-norm section: one scale and one shift a channel, as codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ilwp_plugin.container import SectionBytes, SectionKind, TensorInfo
from ilwp_plugin.method.batch_norm import MANTISSA_BITS, OCTAVES, MergedBatchNorm
from ilwp_plugin.sections.codes import read_codes, write_codes
from ilwp_plugin.sections.entries import RestoredTensors
from ilwp_plugin.stream import Account, ByteReader, ByteWriter, unzigzag, zigzag

__all__ = ["ROLES", "BatchNormSection"]

ROLES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""The tensors of a batch norm in the state dict; the last one may be missing."""

_TRACKED, _SAME_EPS, _SCATTERED = 1, 2, 4


@dataclass(frozen=True, eq=False)
class BatchNormSection(RestoredTensors):
    """Merged batch norms.

    Attributes:
        infos: of each, its tensors in the directory in the order of ROLES; the last one may be missing.
        values: of each, its codes. All have the same number of mantissa bits.
        coder: name of the coder, or "auto".
    """

    infos: tuple[tuple[TensorInfo, ...], ...]
    values: tuple[MergedBatchNorm, ...]
    coder: str

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The restored tensors by name, in their own dtypes."""
        restored = {}
        for infos, value in zip(self.infos, self.values, strict=True):
            tensors = value.restore()
            for role, info in zip(ROLES, infos, strict=False):
                restored[info.name] = tensors[role].to(info.dtype).reshape(info.shape)
        return restored

    def encode(self, directory: Sequence[TensorInfo]) -> SectionBytes:
        """The section's bytes, each charged."""
        position = {info.name: i for i, info in enumerate(directory)}
        writer = ByteWriter("batch_norm")
        writer.varint(len(self.infos))
        writer.u8(self.values[0].mantissa)
        eps = None
        for infos, value in zip(self.infos, self.values, strict=True):
            with writer.charge("batch_norm", infos[0].name):
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
        accounts = self._accounts(self.infos)
        for codes in ([v.scale_codes for v in self.values], [v.shift_codes for v in self.values]):
            write_codes(writer, accounts, [c.numpy() for c in codes], self.coder, "batch_norm")
        return SectionBytes(SectionKind.BATCH_NORM, [writer.getvalue()], writer.ledger)

    @staticmethod
    def _accounts(infos: Sequence[tuple[TensorInfo, ...]]) -> list[Account]:
        return [("batch_norm", tensors[0].name) for tensors in infos]

    @classmethod
    def decode(cls, reader: ByteReader, directory: Sequence[TensorInfo]) -> BatchNormSection:
        """The inverse of `encode`. Raises FormatError."""
        count, mantissa = reader.varint(), reader.u8()
        if not 1 <= count <= len(directory):
            raise reader.fail(f"a batch-norm section of {count} layers, the file has {len(directory)} tensors")
        if mantissa not in MANTISSA_BITS:
            raise reader.fail(f"scales of {mantissa} bits of mantissa")
        infos: list[tuple[TensorInfo, ...]] = []
        heads: list[tuple[int, float, float]] = []
        eps = math.nan
        for _ in range(count):
            with reader.charge_later() as entry:
                flags = reader.u8()
                if flags & ~(_TRACKED | _SAME_EPS | _SCATTERED) or (flags & _SAME_EPS and math.isnan(eps)):
                    raise reader.fail(f"unknown form {flags:#x} of a batch norm")
                number = len(ROLES) if flags & _TRACKED else len(ROLES) - 1
                first = reader.varint()
                places = [first] + [reader.varint() if flags & _SCATTERED else first + i for i in range(1, number)]
                infos.append(_tensors(reader, directory, places))
                entry.account = ("batch_norm", infos[-1][0].name)
                eps = eps if flags & _SAME_EPS else reader.f32()
                exponent, step = unzigzag(reader.varint()), reader.f32()
                if not (0 <= eps < 1 and math.isfinite(step) and math.copysign(1, step) > 0 and abs(exponent) <= 100):
                    raise reader.fail(
                        f"{infos[-1][0].name}: eps {eps}, step {step} or exponent {exponent} out of range"
                    )
                heads.append((exponent, step, eps))
        accounts, sizes = cls._accounts(infos), [tensors[0].numel for tensors in infos]
        scales, coder = read_codes(reader, accounts, sizes, "batch_norm")
        shifts, _ = read_codes(reader, accounts, sizes, "batch_norm")
        reader.finish()
        values = []
        for tensors, (exponent, step, own_eps), scale, shift in zip(infos, heads, scales, shifts, strict=True):
            if int(np.abs(scale).max()) > OCTAVES << mantissa:
                raise reader.fail(f"{tensors[0].name}: a scale out of range")
            codes = torch.from_numpy(scale), torch.from_numpy(shift)
            values.append(MergedBatchNorm(*codes, exponent, mantissa, step, own_eps))
        section = cls(tuple(infos), tuple(values), coder)
        for name, tensor in section.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise reader.fail(f"{name}: restores to values that are not finite")
        return section


def _tensors(reader: ByteReader, directory: Sequence[TensorInfo], places: Sequence[int]) -> tuple[TensorInfo, ...]:
    if max(places) >= len(directory):
        raise reader.fail(f"a batch norm refers to tensor {max(places)}, the file has {len(directory)}")
    infos = tuple(directory[place] for place in places)
    shape = infos[0].shape
    for role, info in zip(ROLES, infos, strict=False):
        floating = info.dtype.is_floating_point and info.dtype.itemsize > 1
        if role == "num_batches_tracked":
            fits = info.shape == () and info.dtype == torch.int64
        else:
            fits = info.shape == shape and len(shape) == 1 and info.numel > 0 and floating
        if info.storage != "packed" or not fits:
            raise reader.fail(f"{info.name}: no {role} of a batch norm: {info.storage}, {info.dtype}, {info.shape}")
    return infos
