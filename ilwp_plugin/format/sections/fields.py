"""The fields section: integer tensors, cut into fields of a few bits, which are entropy-coded.

Toolkits pack weights of less than 8 bits into larger integers, several in each. Whoever knows how many bits a field has
knows the symbols; nothing else about them matters here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.coding import AUTO, Run, Segment, Symbols, fit_coder
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import DTYPES
from ilwp_plugin.format.packing import MOST_TRIED
from ilwp_plugin.format.sections.base import SECTIONS, Context, Summary, TensorSection, read_info, value_bytes
from ilwp_plugin.format.sections.codes import SMALLEST, Coding, Group, StoredCodes, smallest, write_codes
from ilwp_plugin.format.stream import Account, ByteReader, ByteWriter

__all__ = ["FIELD_BITS", "FieldSection"]

FIELD_BITS = range(1, 9)
"""Bits that a field may have."""

_SAMPLE = 1 << 14
"""Integers of a tensor that are looked at to choose how many bits a field has."""

_CHUNK = 1 << 16
"""Fields that are put together at one time."""


@SECTIONS.register("fields")
class FieldSection(TensorSection):
    """Integer tensors, and of each how many bits a field has.

    Attributes:
        infos: their entries in the directory, in its order.
        values: by name; of any dtype with as many bytes as theirs.
        bits: by name, 1 to 8. The first field of an integer is its lowest bits; what is left above the last one, where
            the bits do not divide the integer, is coded apart: it is mostly nothing.
        coding: how the fields are coded; see `sections.codes`. SMALLEST is allowed, too.
    """

    number = 8
    name = "fields"
    lossless = True

    def __init__(
        self,
        infos: Sequence[TensorInfo],
        values: Mapping[str, NDArray[Any]],
        bits: Mapping[str, int],
        coding: Coding = AUTO,
    ) -> None:
        self.infos = tuple(infos)
        self.values: Mapping[str, NDArray[Any]] = values
        self.bits = dict(bits)
        self.coding = coding

    def restore(self, name: str) -> NDArray[Any]:
        return self.values[name] if isinstance(self.values, _Stored) else self.values[name].copy()

    def check(self) -> None:
        for name in self.names:
            self.values[name]

    def summaries(self) -> list[Summary]:
        return [
            Summary(info.name, self.name, info.shape, {"dtype": info.dtype, "bits": self.bits[info.name]})
            for info in self.infos
        ]

    def without(self, names: Collection[str]) -> FieldSection | None:
        infos = [info for info in self.infos if info.name not in names]
        values = {info.name: self.values[info.name] for info in infos}
        return FieldSection(infos, values, {name: self.bits[name] for name in values}) if infos else None

    @staticmethod
    def best_bits(info: TensorInfo, values: NDArray[Any]) -> int:
        """Bits of a field that make a tensor smallest, to judge by a sample of it."""
        words = _words(values, info)
        sizes = {bits: _size(words[:: -(-len(words) // _SAMPLE)], bits, len(words)) for bits in FIELD_BITS}
        return min(sizes, key=sizes.__getitem__)

    @staticmethod
    def size(info: TensorInfo, values: NDArray[Any], bits: int) -> float | None:
        """Bytes that a tensor would take in fields of some bits; None where it cannot be in such a section."""
        return _size(_words(values, info), bits) if _stores(info) else None

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        writer.varint(len(self.infos))
        for info in self.infos:
            with writer.charge(self.part, info.name):
                writer.varint(position[info.name])
                writer.u8(self.bits[info.name])
        runs = [
            (info, run)
            for info in self.infos
            for run in _split(_words(self.values[info.name], info), self.bits[info.name])
        ]
        accounts: list[Account] = [(self.part, info.name) for info, _ in runs]
        codes = [Run.of(run, Segment.rows(len(run), info.shape)) for info, run in runs]
        ways: list[Coding] = [AUTO if self.coding == SMALLEST else self.coding]
        if self.coding == SMALLEST and sum(info.nbytes for info in self.infos) <= MOST_TRIED:
            ways.append((Group(len(runs), "lzma", 0),))
        way = smallest(ways, lambda trial, way: write_codes(trial, accounts, codes, way, self.part))
        write_codes(writer, accounts, codes, way, self.part)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> FieldSection:
        directory = context.directory
        with reader.charge(cls.part, None):
            count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a fields section of {count} tensors, the file has {len(directory)}")
        infos: dict[str, TensorInfo] = {}
        bits: dict[str, int] = {}
        for _ in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory)
                entry.account = (cls.part, info.name)
                if info.name in infos:
                    raise reader.fail("ownership", f"{info.name}: twice in a fields section")
                infos[info.name], bits[info.name] = info, reader.u8()
                if bits[info.name] not in FIELD_BITS:
                    raise reader.fail("form", f"{info.name}: fields of {bits[info.name]} bits")
        lengths = [(info, info.numel * n) for info in infos.values() for n in _fields_of_one(info, bits[info.name])]
        accounts: list[Account] = [(cls.part, info.name) for info, _ in lengths]
        segments = [Segment.flat(length) for _, length in lengths]
        codes = StoredCodes(reader, accounts, segments, cls.part, context.budget)
        reader.finish()
        return cls(list(infos.values()), _Stored(list(infos.values()), bits, codes, reader.where), bits, codes.coding)


class _Stored(Mapping[str, NDArray[Any]]):
    """The tensors as they stand in a file; each is made when it is asked for."""

    def __init__(self, infos: Sequence[TensorInfo], bits: Mapping[str, int], codes: StoredCodes, where: str) -> None:
        self._bits, self._codes, self._where = bits, codes, where
        self._runs: dict[str, tuple[TensorInfo, int]] = {}
        number = 0
        for info in infos:
            self._runs[info.name] = info, number
            number += len(_fields_of_one(info, bits[info.name]))

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __getitem__(self, name: str) -> NDArray[Any]:
        info, number = self._runs[name]
        bits = self._bits[name]
        words = np.zeros(info.numel, _word(info))
        whole, left = divmod(8 * words.itemsize, bits)
        self._fill(words, number, whole, bits, 0, info)
        if left:
            self._fill(words, number + 1, 1, left, whole * bits, info)
        return words.view(DTYPES[info.dtype].carrier).reshape(info.shape)

    def _fill(self, words: NDArray[Any], number: int, fields: int, width: int, lowest: int, info: TensorInfo) -> None:
        """Put the fields of a run where they belong; a run has so many in each word, from a lowest bit on."""
        shifts = (lowest + width * np.arange(fields)).astype(words.dtype)
        at = 0  # fields that are done
        for piece in self._codes.pieces(number):
            for start in range(0, len(piece), _CHUNK):
                part = piece[start : start + _CHUNK]
                if int(part.min()) < 0 or int(part.max()) >> width:
                    raise FormatError(f"{self._where}: {info.name}: a field of more than its {width} bits", "code")
                places = np.arange(at, at + len(part))
                own = part.astype(words.dtype) << shifts[places % fields]
                begins = np.flatnonzero((places % fields == 0) | (places == at))
                words[places[begins] // fields] |= np.bitwise_or.reduceat(own, begins)
                at += len(part)


def _stores(info: TensorInfo) -> bool:
    return DTYPES[info.dtype].kind in ("signed", "unsigned") and info.numel > 0


def _fields_of_one(info: TensorInfo, bits: int) -> list[int]:
    """How many fields an integer has in each of its runs: whole ones, and what is left."""
    whole, left = divmod(8 * DTYPES[info.dtype].itemsize, bits)
    return [whole, 1] if left else [whole]


def _word(info: TensorInfo) -> np.dtype[Any]:
    """An unsigned integer of as many bytes as a value."""
    return np.dtype(f"<u{DTYPES[info.dtype].itemsize}")


def _words(values: NDArray[Any], info: TensorInfo) -> NDArray[np.unsignedinteger[Any]]:
    """(values,) unsigned integers of the same bits."""
    return np.frombuffer(value_bytes(values, info), _word(info))


def _split(words: NDArray[np.unsignedinteger[Any]], bits: int) -> list[Symbols]:
    """(values * fields,) int16 of whole fields, of each integer from the lowest on; and (values,) of what is left."""
    whole, left = divmod(8 * words.itemsize, bits)
    shifts = np.arange(whole, dtype=words.dtype) * words.dtype.type(bits)
    runs: list[Symbols] = [((words[:, None] >> shifts) & words.dtype.type((1 << bits) - 1)).astype(np.int16).ravel()]
    return [*runs, (words >> words.dtype.type(whole * bits)).astype(np.int16)] if left else runs


def _size(words: NDArray[np.unsignedinteger[Any]], bits: int, number: int | None = None) -> float:
    """Bytes of integers, or of more of the same kind, in fields of some bits."""
    fits = [fit_coder(Run.of(run), AUTO) for run in _split(words, bits)]
    times = 1 if number is None else number / len(words)
    return sum(len(fit.table) + times * fit.payload_bytes for fit in fits)


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo]) -> TensorInfo:
    info = read_info(reader, directory, "a fields section")
    if info.storage != "coded" or not _stores(info):
        raise reader.fail("unfit", f"{info.name}: a fields section holds a tensor that is {info.storage}, {info.dtype}")
    return info
