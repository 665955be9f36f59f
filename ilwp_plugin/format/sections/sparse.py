"""The sparse section: pruned weights that nothing quantizes, as a map of zeros and the other values as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.coding import read_indices, write_indices
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import DTYPES, is_real
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section, Summary, read_info, value_bytes
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["SparseSection"]


@SECTIONS.register("sparse")
class SparseSection(Section):
    """Weights with zeros.

    Attributes:
        infos: their entries in the directory, in its order.
        values: by name; of any dtype with as many bytes as theirs. A zero has no sign.
    """

    number = 7
    name = "sparse"

    def __init__(self, infos: Sequence[TensorInfo], values: Mapping[str, NDArray[Any]]) -> None:
        self.infos = tuple(infos)
        self.values = dict(values)

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.infos]

    def restore(self, name: str) -> NDArray[Any]:
        return self.values[name].copy()

    def summaries(self) -> list[Summary]:
        return [
            Summary(info.name, self.name, info.shape, {"dtype": info.dtype, "zeros": _zeros_of(self.values[info.name])})
            for info in self.infos
        ]

    def without(self, names: Collection[str]) -> SparseSection | None:
        infos = [info for info in self.infos if info.name not in names]
        return SparseSection(infos, {info.name: self.values[info.name] for info in infos}) if infos else None

    @staticmethod
    def size(info: TensorInfo, values: NDArray[Any]) -> int | None:
        """Bytes that a tensor would take, the section's own aside; None where it cannot be in one.

        Zeros with a sign, as a mask times a negative weight leaves them, cannot be told from others: take it away first
        (`values + 0.0`).
        """
        if not is_real(info.dtype) or not info.numel or not _zero_bits(values, info).any():
            return None
        return len(_encode(values, info)) + 2

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        writer.varint(len(self.infos))
        for info in self.infos:
            with writer.charge(self.part, info.name):
                writer.varint(position[info.name])
                writer.raw(_encode(self.values[info.name], info))

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> SparseSection:
        directory = context.directory
        with reader.charge(cls.part, None):
            count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a sparse section of {count} tensors, the file has {len(directory)}")
        infos: list[TensorInfo] = []
        values: dict[str, NDArray[Any]] = {}
        for _ in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory)
                entry.account = (cls.part, info.name)
                if info.name in values:
                    raise reader.fail("ownership", f"{info.name}: twice in a sparse section")
                values[info.name] = _decode(reader, info)
                infos.append(info)
        reader.finish()
        return cls(infos, values)


def _bytes_of(values: NDArray[Any], info: TensorInfo) -> NDArray[np.uint8]:
    """(values, bytes of each) uint8."""
    return np.frombuffer(value_bytes(values, info), np.uint8).reshape(-1, DTYPES[info.dtype].itemsize)


def _zero_bits(values: NDArray[Any], info: TensorInfo) -> NDArray[np.bool_]:
    """(values,): whether no bit is set."""
    flat = np.frombuffer(value_bytes(values, info), f"<u{DTYPES[info.dtype].itemsize}")
    return np.asarray(flat == 0)


def _zeros_of(values: NDArray[Any]) -> float:
    return float((values == 0).mean())


def _encode(values: NDArray[Any], info: TensorInfo) -> bytes:
    zeros = _zero_bits(values, info)
    writer = ByteWriter("other")
    write_indices(writer, np.packbits(zeros), 256)
    writer.raw(_bytes_of(values, info)[~zeros].tobytes())
    return writer.getvalue()


def _decode(reader: ByteReader, info: TensorInfo) -> NDArray[Any]:
    length = (info.numel + 7) // 8
    if length > 8 * reader.remaining:  # eight values take at least a bit: what is allocated is bounded by what is there
        raise reader.fail("too-short", f"{info.name}: a map of {info.numel} values in {reader.remaining} bytes")
    bits = np.unpackbits(read_indices(reader, length, 256).astype(np.uint8))
    if bits[info.numel :].any():
        raise reader.fail("padding", f"{info.name}: the padding of the map of zeros is not zero")
    others = ~bits[: info.numel].astype(bool)
    carrier = DTYPES[info.dtype].carrier
    found = np.frombuffer(reader.raw(int(others.sum()) * carrier.itemsize), f"<u{carrier.itemsize}")
    if others.all() or not (found != 0).all():
        raise reader.fail("zeros", f"{info.name}: the map of zeros does not tell the zeros from the others")
    values = np.zeros(info.numel, found.dtype)
    values[others] = found
    return values.view(carrier).reshape(info.shape)


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo]) -> TensorInfo:
    info = read_info(reader, directory, "a sparse section")
    if info.storage != "coded" or not is_real(info.dtype) or not info.numel:
        raise reader.fail("unfit", f"{info.name}: a sparse section holds a tensor that is {info.storage}, {info.dtype}")
    return info
