"""The fields section: integer tensors, cut into fields of a few bits, which are entropy-coded.

Toolkits pack weights of less than 8 bits into larger integers, several in each. Whoever knows how many bits a field has
knows the symbols; nothing else about them matters here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilwp_plugin.coding import AUTO, Histogram, Symbols, fit_coder
from ilwp_plugin.container import SectionBytes, SectionKind, TensorInfo
from ilwp_plugin.sections.codes import read_codes, write_codes
from ilwp_plugin.sections.entries import RestoredTensors, read_info
from ilwp_plugin.sections.raw import raw_bytes
from ilwp_plugin.stream import Account, ByteReader, ByteWriter

__all__ = ["FieldSection", "split_fields"]

_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FIELD_BITS = range(1, 9)

_SAMPLE = 1 << 14
"""Integers of a tensor that are looked at to choose how many bits a field has."""

_OVERHEAD = 16
"""Bytes that a tensor has to save at least: a part of them the section itself costs."""


@dataclass(frozen=True, eq=False)
class FieldSection(RestoredTensors):
    """Integer tensors, and of each how many bits a field has.

    Attributes:
        tensors: by name, in the order of the directory.
        bits: by name, 1 to 8. The first field of an integer is its lowest bits; what is left above the last one, where
            the bits do not divide the integer, is coded apart: it is mostly nothing.
    """

    tensors: Mapping[str, Tensor]
    bits: Mapping[str, int]

    def without(self, names: Collection[str]) -> FieldSection | None:
        """The same without some of its tensors; None if nothing is left."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in names}
        return FieldSection(tensors, self.bits) if tensors else None

    def encode(self, directory: Sequence[TensorInfo]) -> SectionBytes:
        """The section's bytes, each charged."""
        position = {info.name: i for i, info in enumerate(directory)}
        writer = ByteWriter("other")
        writer.varint(len(self.tensors))
        for name in self.tensors:
            with writer.charge("other", name):
                writer.varint(position[name])
                writer.u8(self.bits[name])
        runs = [(name, run) for name, t in self.tensors.items() for run in _split(_words(t), self.bits[name])]
        write_codes(writer, [("other", name) for name, _ in runs], [run for _, run in runs], AUTO, "other")
        return SectionBytes(SectionKind.FIELDS, [writer.getvalue()], writer.ledger)

    @classmethod
    def decode(cls, reader: ByteReader, directory: Sequence[TensorInfo]) -> FieldSection:
        """The inverse of `encode`. Raises FormatError."""
        with reader.charge("other", None):
            count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail(f"a fields section of {count} tensors, the file has {len(directory)}")
        infos: dict[str, TensorInfo] = {}
        bits: dict[str, int] = {}
        for _ in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory)
                entry.account = ("other", info.name)
                if info.name in infos:
                    raise reader.fail(f"{info.name}: twice in a fields section")
                infos[info.name], bits[info.name] = info, reader.u8()
                if bits[info.name] not in _FIELD_BITS:
                    raise reader.fail(f"{info.name}: fields of {bits[info.name]} bits")
        lengths = [
            (info, info.numel * n) for info in infos.values() for n in _fields_of_one(info.dtype, bits[info.name])
        ]
        accounts: list[Account] = [("other", info.name) for info, _ in lengths]
        runs, _ = read_codes(reader, accounts, [length for _, length in lengths], "other")
        reader.finish()
        tensors, left = {}, iter(runs)
        for info in infos.values():
            own = [next(left) for _ in _fields_of_one(info.dtype, bits[info.name])]
            tensors[info.name] = _joined(reader, own, info, bits[info.name])
        return cls(tensors, bits)


def split_fields(
    directory: Sequence[TensorInfo], raw: Mapping[str, Tensor]
) -> tuple[list[TensorInfo], dict[str, Tensor], FieldSection | None]:
    """Take the integer tensors that are smaller that way out of the raw tensors.

    Args:
        directory: of the file.
        raw: its raw tensors, by name.

    Returns:
        The directory, the raw tensors that are left, and the section of the others; None where there are none.
    """
    bits: dict[str, int] = {}
    for name, tensor in raw.items():
        if tensor.dtype in _DTYPES and tensor.nbytes > _OVERHEAD:
            best = _best_bits(tensor)
            if _size(_words(tensor), best) + _OVERHEAD < tensor.nbytes:
                bits[name] = best
    if not bits:
        return list(directory), dict(raw), None
    infos = [replace(info, storage="packed") if info.name in bits else info for info in directory]
    section = FieldSection({name: raw[name] for name in bits}, bits)
    return infos, {name: tensor for name, tensor in raw.items() if name not in bits}, section


def _fields_of_one(dtype: torch.dtype, bits: int) -> list[int]:
    """How many fields an integer has in each of its runs: whole ones, and what is left."""
    whole, left = divmod(8 * dtype.itemsize, bits)
    return [whole, 1] if left else [whole]


def _words(tensor: Tensor) -> NDArray[np.unsignedinteger]:
    """(values,) unsigned integers of the same bits."""
    return np.frombuffer(raw_bytes(tensor), dtype=f"<u{tensor.dtype.itemsize}")


def _split(words: NDArray[np.unsignedinteger], bits: int) -> list[Symbols]:
    """(values * fields,) int16 of whole fields, of each integer from the lowest on; and (values,) of what is left."""
    whole, left = divmod(8 * words.itemsize, bits)
    shifts = np.arange(whole, dtype=words.dtype) * words.dtype.type(bits)
    runs = [((words[:, None] >> shifts) & words.dtype.type((1 << bits) - 1)).astype(np.int16).ravel()]
    return [*runs, (words >> words.dtype.type(whole * bits)).astype(np.int16)] if left else runs


def _joined(reader: ByteReader, runs: Sequence[Symbols], info: TensorInfo, bits: int) -> Tensor:
    dtype = np.dtype(f"<u{info.dtype.itemsize}")
    whole, left = divmod(8 * dtype.itemsize, bits)
    for run, width in zip(runs, (bits, left), strict=False):
        if int(run.min()) < 0 or int(run.max()) >> width:
            raise reader.fail(f"{info.name}: a field of more than its {width} bits")
    table = runs[0].reshape(-1, whole)
    words = runs[1].astype(dtype) << dtype.type(whole * bits) if left else np.zeros(info.numel, dtype=dtype)
    for position in range(whole):
        words |= table[:, position].astype(dtype) << dtype.type(bits * position)
    return torch.from_numpy(words.view(np.uint8)).view(info.dtype).reshape(info.shape)


def _best_bits(tensor: Tensor) -> int:
    """Bits of a field that make the tensor smallest, to judge by a sample of it."""
    words = _words(tensor)
    sizes = {bits: _size(words[:: -(-len(words) // _SAMPLE)], bits, len(words)) for bits in _FIELD_BITS}
    return min(sizes, key=sizes.__getitem__)


def _size(words: NDArray[np.unsignedinteger], bits: int, number: int | None = None) -> float:
    """Bytes of integers, or of more of the same kind, in fields of some bits."""
    fits = [fit_coder(Histogram.of(run), AUTO) for run in _split(words, bits)]
    times = 1 if number is None else number / len(words)
    return sum(len(fit.table) + times * fit.payload_bytes for fit in fits)


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo]) -> TensorInfo:
    info = read_info(reader, directory, "a fields section")
    if info.storage != "packed" or info.dtype not in _DTYPES or not info.numel:
        raise reader.fail(f"{info.name}: a fields section holds a tensor that is {info.storage}, {info.dtype}")
    return info
