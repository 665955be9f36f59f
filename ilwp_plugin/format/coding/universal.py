"""A universal source code: symbols packed into bytes, and LZMA, which learns what they are like as it goes.

No table tells how often a symbol occurs. A byte holds a block of symbols, since an LZ code of one symbol a byte is far
from the entropy of small alphabets; a symbol that is too large for its digit goes on in a second stream.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.coding.base import CODERS, Coder, Histogram, Run, Segment, Symbols, smallest_dtype
from ilwp_plugin.format.stream import ByteReader, ByteWriter, unzigzag, zigzag

__all__ = ["LzmaCoder", "Packing"]

_FILTER = {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}
_EFFORT = {**_FILTER, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}
_LARGEST = (1 << 17) - 1
"""Of a symbol's magnitude."""
_RADICES = (2, 3, 4, 6, 16, 256)
"""Those that are tried: the largest for 8, 5, 4, 3, 2 and 1 symbols a byte."""
_SAMPLE = 1 << 16
"""Symbols by which a radix is chosen."""
_PIECE = 1 << 16
"""Bytes that are unpacked at one time."""


@dataclass(frozen=True)
class Packing:
    """How symbols become bytes.

    Attributes:
        centre: the symbol that becomes the digit 0; those around it follow by distance.
        radix: of the digits, 2 to 256; the highest digit says that the second stream has the rest.
    """

    centre: int
    radix: int

    @property
    def width(self) -> int:
        """Digits of a byte."""
        width = 1
        while self.radix ** (width + 1) <= 256:
            width += 1
        return width

    @property
    def places(self) -> NDArray[np.int64]:
        """What each digit of a byte counts."""
        return np.array([self.radix**i for i in range(self.width)], np.int64)


class LzmaCoder(Coder):
    """LZMA of packed symbols."""

    id = 3
    density = 1 << 16
    learns = True

    def fit(self, run: Run) -> Packing:
        histogram = run.histogram
        centre = histogram.low + int(histogram.counts.argmax())
        symbols = run.joined[:_SAMPLE]
        packings = [Packing(centre, radix) for radix in _RADICES]
        packings.append(Packing(histogram.low + len(histogram.counts) // 2, _RADICES[-1]))  # symbols that are all bytes
        return min(packings, key=lambda packing: len(_packed(packing, symbols)))

    def table(self, model: Packing) -> bytes:
        writer = ByteWriter()
        writer.varint(zigzag(model.centre))
        writer.varint(model.radix)
        return writer.getvalue()

    def read_table(self, reader: ByteReader) -> Packing:
        centre, radix = unzigzag(reader.varint()), reader.varint()
        if abs(centre) > _LARGEST or not 2 <= radix <= 256:
            raise reader.fail("table", f"symbols around {centre} in digits of radix {radix}")
        return Packing(centre, radix)

    def bits(self, model: Packing, histogram: Histogram) -> int:
        count = int(histogram.counts.sum())
        return int(histogram.entropy * count) + 1

    def payload_bytes(self, model: Packing, run: Run) -> int:
        return len(_packed(model, run.joined))

    def encode(self, model: Packing, symbols: Symbols, segments: Sequence[Segment]) -> bytes:
        return _packed(model, symbols)

    def decode(self, model: Packing, payload: memoryview, segments: Sequence[Segment], reader: ByteReader) -> Symbols:
        return np.concatenate(list(self.pieces(model, payload, segments, reader)))

    def pieces(
        self, model: Packing, payload: memoryview, segments: Sequence[Segment], reader: ByteReader
    ) -> Iterator[Symbols]:
        count = sum(segment.count for segment in segments)
        self.bound(payload, count, reader)
        inner = ByteReader(payload, reader.where)
        length = inner.varint()
        digits = _Unpacked(inner.raw(length), reader)
        rest = _Rest(inner.raw(inner.remaining), reader)
        left = count
        while left:
            taken = digits.take(min(_PIECE, -(-left // model.width)))
            block = taken.astype(np.int64)[:, None] // model.places % model.radix
            if int((taken.astype(np.int64) // model.places[-1]).max()) >= model.radix:
                raise reader.fail("payload", f"a byte that is more than {model.width} digits of radix {model.radix}")
            values = block.reshape(-1)
            if values[left:].any():
                raise reader.fail("padding", "the digits after the last symbol are not zero")
            values = values[:left]
            large = np.flatnonzero(values == model.radix - 1)
            if len(large):
                values[large] += rest.take(len(large))
            left -= len(values)
            symbols = np.where(values & 1, -(values >> 1) - 1, values >> 1) + model.centre
            low, high = int(symbols.min()), int(symbols.max())
            if max(-low, high) > _LARGEST:
                raise reader.fail("payload", f"a symbol beyond {_LARGEST:,} in magnitude")
            yield symbols.astype(smallest_dtype(low, high))
        digits.finish()
        rest.finish()


def _packed(packing: Packing, symbols: Symbols) -> bytes:
    distance = symbols.astype(np.int64) - packing.centre
    values = np.where(distance < 0, -2 * distance - 1, 2 * distance)
    digits = np.minimum(values, packing.radix - 1)
    rest = values[digits == packing.radix - 1] - (packing.radix - 1)
    digits = np.pad(digits, (0, -len(digits) % packing.width)).reshape(-1, packing.width)
    writer = ByteWriter()
    stream = _compressed((digits @ packing.places).astype(np.uint8).tobytes())
    writer.varint(len(stream))
    writer.raw(stream)
    if len(rest):
        writer.raw(_compressed(_varints(rest)))
    return writer.getvalue()


def _compressed(content: bytes) -> bytes:
    return lzma.compress(content, lzma.FORMAT_RAW, filters=[_EFFORT])


def _varints(values: NDArray[np.int64]) -> bytes:
    """LEB128 of each, at most three bytes."""
    parts = np.stack([values & 127, values >> 7 & 127, values >> 14], axis=1)
    lengths = 1 + (values > 127) + (values > 16383)
    more = np.arange(3) < lengths[:, None] - 1
    packed: NDArray[np.uint8] = (parts | more << 7)[np.arange(3) < lengths[:, None]].astype(np.uint8)
    return packed.tobytes()


class _Unpacked:
    """The bytes of a stream, some at a time."""

    def __init__(self, packed: memoryview, reader: ByteReader) -> None:
        self._input: bytes = bytes(packed)
        self._reader, self._empty = reader, not packed
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_FILTER])

    def some(self, most: int) -> bytes:
        """At most so many bytes, at least one."""
        piece = b""
        while not piece:
            if self._empty or self._unpacker.eof or (self._unpacker.needs_input and not self._input):
                raise self._reader.fail("payload", "an LZMA stream ends before what it holds")
            try:
                piece = self._unpacker.decompress(self._input, most)
            except lzma.LZMAError as error:
                raise self._reader.fail("payload", f"a payload that cannot be unpacked: {error}") from None
            self._input = b""
        return piece

    def take(self, count: int) -> NDArray[np.uint8]:
        """So many bytes."""
        parts, left = [], count
        while left:
            parts.append(self.some(left))
            left -= len(parts[-1])
        return np.frombuffer(b"".join(parts), np.uint8)

    def finish(self) -> None:
        """Raises FormatError where something is left."""
        if self._empty:
            return
        try:
            more = b"" if self._unpacker.eof else self._unpacker.decompress(self._input, 1)
        except lzma.LZMAError as error:
            raise self._reader.fail("payload", f"a payload that cannot be unpacked: {error}") from None
        if more or not self._unpacker.eof or self._unpacker.unused_data:
            raise self._reader.fail("payload", "an LZMA stream goes on behind what it holds")


class _Rest:
    """What digits could not hold: varints."""

    def __init__(self, packed: memoryview, reader: ByteReader) -> None:
        self._bytes, self._reader = _Unpacked(packed, reader), reader
        self._left: NDArray[np.int64] = np.empty(0, np.int64)
        self._begun = b""

    def take(self, count: int) -> NDArray[np.int64]:
        """So many values."""
        parts = [self._left]
        have = len(self._left)
        while have < count:
            parts.append(self._more())
            have += len(parts[-1])
        values = np.concatenate(parts)
        self._left = values[count:]
        return values[:count]

    def _more(self) -> NDArray[np.int64]:
        content = self._begun + self._bytes.some(_PIECE)
        own = np.frombuffer(content, np.uint8).astype(np.int64)
        ends = np.flatnonzero(own < 128)
        last = int(ends[-1]) + 1 if len(ends) else 0
        self._begun = content[last:]
        lengths = np.diff(ends, prepend=-1)
        if len(self._begun) > 2 or (len(lengths) and int(lengths.max()) > 3):
            raise self._reader.fail("number-too-large", "a varint of more than three bytes in a payload")
        if (own[ends[lengths > 1]] == 0).any():
            raise self._reader.fail("number-not-shortest", "a varint in more bytes than it needs in a payload")
        if not len(ends):
            return np.empty(0, np.int64)
        starts = ends - lengths + 1
        within = np.arange(last) - np.repeat(starts, lengths)
        found: NDArray[np.int64] = np.add.reduceat((own[:last] & 127) << 7 * within, starts)
        return found

    def finish(self) -> None:
        """Raises FormatError where something is left."""
        if len(self._left) or self._begun:
            raise self._reader.fail("payload", "more large symbols than the digits tell of")
        self._bytes.finish()


CODERS.register("lzma")(LzmaCoder())
