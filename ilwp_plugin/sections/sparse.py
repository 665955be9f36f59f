"""The sparse section: pruned weights that nothing quantizes, as a map of zeros and the other values as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilwp_plugin.coding import read_indices, write_indices
from ilwp_plugin.container import SectionBytes, SectionKind, TensorInfo
from ilwp_plugin.sections.entries import RestoredTensors, read_info
from ilwp_plugin.sections.raw import raw_bytes
from ilwp_plugin.stream import ByteReader, ByteWriter

__all__ = ["SparseSection", "split_sparse"]


@dataclass(frozen=True, eq=False)
class SparseSection(RestoredTensors):
    """Weights with zeros.

    Attributes:
        tensors: by name, in the order of the directory.
    """

    tensors: Mapping[str, Tensor]

    def without(self, names: Collection[str]) -> SparseSection | None:
        """The same without some of its tensors; None if nothing is left."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if name not in names}
        return SparseSection(tensors) if tensors else None

    def encode(self, directory: Sequence[TensorInfo]) -> SectionBytes:
        """The section's bytes, each charged."""
        position = {info.name: i for i, info in enumerate(directory)}
        writer = ByteWriter("other")
        writer.varint(len(self.tensors))
        for name, tensor in self.tensors.items():
            with writer.charge("other", name):
                writer.varint(position[name])
                writer.raw(_encode(tensor))
        return SectionBytes(SectionKind.SPARSE, [writer.getvalue()], writer.ledger)

    @classmethod
    def decode(cls, reader: ByteReader, directory: Sequence[TensorInfo]) -> SparseSection:
        """The inverse of `encode`. Raises FormatError."""
        with reader.charge("other", None):
            count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail(f"a sparse section of {count} tensors, the file has {len(directory)}")
        tensors: dict[str, Tensor] = {}
        for _ in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory)
                entry.account = ("other", info.name)
                if info.name in tensors:
                    raise reader.fail(f"{info.name}: twice in a sparse section")
                tensors[info.name] = _decode(reader, info)
        reader.finish()
        return cls(tensors)


def split_sparse(
    directory: Sequence[TensorInfo], raw: Mapping[str, Tensor]
) -> tuple[list[TensorInfo], dict[str, Tensor], SparseSection | None]:
    """Take the weights that are smaller that way out of the raw tensors.

    Args:
        directory: of the file.
        raw: its raw tensors, by name.

    Returns:
        The directory, the raw tensors that are left, and the section of the others, whose zeros have lost their signs;
        None where there are none.
    """
    # A mask times a negative weight is -0, which computes as 0 does, and would be half of all zeros.
    unsigned = {name: torch.where(t == 0, torch.zeros_like(t), t) for name, t in raw.items() if _suits(t)}
    sparse = {name: t for name, t in unsigned.items() if len(_encode(t)) + 2 < t.nbytes}
    if not sparse:
        return list(directory), dict(raw), None
    infos = [replace(info, storage="packed") if info.name in sparse else info for info in directory]
    return infos, {name: tensor for name, tensor in raw.items() if name not in sparse}, SparseSection(sparse)


def _suits(tensor: Tensor) -> bool:
    """Only matrices and kernels: zeros in a vector are a few bytes, and its place in the raw section costs none."""
    return tensor.dim() > 1 and _stores(tensor.dtype) and tensor.numel() > 0 and bool((tensor == 0).any())


def _stores(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1


def _bits(tensor: Tensor) -> NDArray[np.uint8]:
    """(values, bytes of each) uint8."""
    return np.frombuffer(raw_bytes(tensor), dtype=np.uint8).reshape(-1, tensor.dtype.itemsize)


def _encode(tensor: Tensor) -> bytes:
    values = _bits(tensor)
    zeros = ~values.any(axis=1)
    writer = ByteWriter("other")
    write_indices(writer, np.packbits(zeros).astype(np.int64), 256)
    writer.raw(values[~zeros].tobytes())
    return writer.getvalue()


def _decode(reader: ByteReader, info: TensorInfo) -> Tensor:
    length = (info.numel + 7) // 8
    if length > 8 * reader.remaining:  # eight values take at least a bit: what is allocated is bounded by what is there
        raise reader.fail(f"{info.name}: a map of {info.numel} values in {reader.remaining} bytes")
    packed = read_indices(reader, length, 256).astype(np.uint8)
    bits = np.unpackbits(packed)
    if bits[info.numel :].any():
        raise reader.fail(f"{info.name}: the padding of the map of zeros is not zero")
    others = ~bits[: info.numel].astype(bool)
    size = info.dtype.itemsize
    found = np.frombuffer(reader.raw(int(others.sum()) * size), dtype=np.uint8).reshape(-1, size)
    if others.all() or not found.any(axis=1).all():
        raise reader.fail(f"{info.name}: the map of zeros does not tell the zeros from the others")
    values = np.zeros((info.numel, size), dtype=np.uint8)
    values[others] = found
    return torch.from_numpy(values.reshape(-1)).view(info.dtype).reshape(info.shape)


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo]) -> TensorInfo:
    info = read_info(reader, directory, "a sparse section")
    if info.storage != "packed" or not _stores(info.dtype) or not info.numel:
        raise reader.fail(f"{info.name}: a sparse section holds a tensor that is {info.storage}, {info.dtype}")
    return info
