"""The sparse section: pruned weights that nothing quantizes, as a map of zeros and the other values as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import DTYPES, is_real
from ilwp_plugin.format.sections.base import SECTIONS, Context, Summary, TensorSection, read_info, value_bytes
from ilwp_plugin.format.sections.maps import count_ones, read_map, write_map
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["SparseSection"]

_CHUNK = 1 << 13
"""Bytes of a map that are looked at at one time."""


@SECTIONS.register("sparse")
class SparseSection(TensorSection):
    """Weights with zeros.

    Attributes:
        infos: their entries in the directory, in its order.
        values: by name; of any dtype with as many bytes as theirs. A zero has no sign.
    """

    number = 7
    name = "sparse"
    lossless = True

    def __init__(self, infos: Sequence[TensorInfo], values: Mapping[str, NDArray[Any]]) -> None:
        self.infos = tuple(infos)
        self.values: Mapping[str, NDArray[Any]] = values

    def restore(self, name: str) -> NDArray[Any]:
        return self.values[name] if isinstance(self.values, _Stored) else self.values[name].copy()

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
        stored: dict[str, tuple[TensorInfo, NDArray[np.uint8], memoryview]] = {}
        for _ in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory)
                entry.account = (cls.part, info.name)
                if info.name in stored:
                    raise reader.fail("ownership", f"{info.name}: twice in a sparse section")
                packed = read_map(reader, info, context.budget)
                zeros = count_ones(packed)
                others = reader.raw((info.numel - zeros) * DTYPES[info.dtype].itemsize)
                if not zeros or not np.frombuffer(others, _word(info)).all():
                    raise reader.fail("zeros", f"{info.name}: the map of zeros does not tell the zeros from the others")
                context.budget.hold(len(packed), "a map of zeros")
                stored[info.name] = info, packed, others
                infos.append(info)
        reader.finish()
        return cls(infos, _Stored(stored))


class _Stored(Mapping[str, NDArray[Any]]):
    """The tensors as they stand in a file; each is made when it is asked for."""

    def __init__(self, stored: Mapping[str, tuple[TensorInfo, NDArray[np.uint8], memoryview]]) -> None:
        self._stored = stored

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __getitem__(self, name: str) -> NDArray[Any]:
        info, packed, piece = self._stored[name]
        others = np.frombuffer(piece, _word(info))
        values = np.zeros(info.numel, others.dtype)
        done = 0
        for start in range(0, info.numel, 8 * _CHUNK):
            part = values[start : start + 8 * _CHUNK]
            bits = np.unpackbits(packed[start // 8 : start // 8 + _CHUNK], count=len(part))
            count = len(part) - int(bits.sum(dtype=np.int64))
            part[bits == 0] = others[done : done + count]
            done += count
        return values.view(DTYPES[info.dtype].carrier).reshape(info.shape)


def _word(info: TensorInfo) -> np.dtype[Any]:
    """An unsigned integer of as many bytes as a value."""
    return np.dtype(f"<u{DTYPES[info.dtype].itemsize}")


def _bytes_of(values: NDArray[Any], info: TensorInfo) -> NDArray[np.uint8]:
    """(values, bytes of each) uint8."""
    return np.frombuffer(value_bytes(values, info), np.uint8).reshape(-1, DTYPES[info.dtype].itemsize)


def _zero_bits(values: NDArray[Any], info: TensorInfo) -> NDArray[np.bool_]:
    """(values,): whether no bit is set."""
    return np.asarray(np.frombuffer(value_bytes(values, info), _word(info)) == 0)


def _zeros_of(values: NDArray[Any]) -> float:
    return float((values == 0).mean())


def _encode(values: NDArray[Any], info: TensorInfo) -> bytes:
    zeros = _zero_bits(values, info)
    writer = ByteWriter("other")
    write_map(writer, zeros)
    writer.raw(_bytes_of(values, info)[~zeros].tobytes())
    return writer.getvalue()


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo]) -> TensorInfo:
    info = read_info(reader, directory, "a sparse section")
    if info.storage != "coded" or not is_real(info.dtype) or not info.numel:
        raise reader.fail("unfit", f"{info.name}: a sparse section holds a tensor that is {info.storage}, {info.dtype}")
    return info
