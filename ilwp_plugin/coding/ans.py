"""Asymmetric numeral systems (Duda 2009) with a static model: below one bit a symbol where one symbol dominates.

A model gives every symbol of a span a whole number of 2^-24ths; they come from small floating-point weights that are
stored, by integer arithmetic alone, so that every machine derives the same model. constriction does the bit work; where
numba is installed, long payloads are decoded by compiled code, which reads the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import constriction
import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from ilwp_plugin.coding import fast
from ilwp_plugin.coding.base import CODERS, Coder, Histogram, Symbols
from ilwp_plugin.stream import ByteReader, ByteWriter, unzigzag, zigzag

__all__ = ["AnsCoder", "AnsModel", "PRECISION", "SYMBOLS_PER_BYTE"]

PRECISION = 24
"""Probabilities are multiples of 2^-24, as in constriction's default coders."""

_TOTAL = 1 << PRECISION
_MOST = _TOTAL - (1 << 17)
"""The largest probability: so every symbol costs at least 0.0056 bits, and a count is bounded by its payload."""

SYMBOLS_PER_BYTE = 2048
"""More symbols than this cannot be in one byte of payload."""

_START = np.array([_TOTAL], dtype=np.uint32)
"""The coder's first state. No probability is larger, so no symbol leaves it as it is, and no symbol is free."""

_MAX_SPAN = 1 << 16
_MAX_EXPONENT = 32
_MANTISSAS = range(5)
_MAX_GOLOMB = 7
_MANY = 1 << 16
"""So many symbols are coded in four streams, which a processor decodes side by side."""


def _weights_of(levels: NDArray[np.int64], mantissa: int) -> NDArray[np.int64]:
    """Small floating-point numbers: level 0 is 0, level 1 + (e << m | f) is (2^m + f) * 2^e."""
    exponent, fraction = np.divmod(np.maximum(levels - 1, 0), 1 << mantissa)
    return np.where(levels > 0, ((1 << mantissa) + fraction) << exponent, 0)


def _levels_of(counts: NDArray[np.int64], mantissa: int) -> NDArray[np.int64]:
    """The levels whose weights are nearest to `counts * 2^mantissa`; 0 only for a count of 0."""
    scaled = np.maximum(counts, 1) << mantissa
    exponent = np.frexp(scaled.astype(np.float64))[1].astype(np.int64) - 1 - mantissa
    fraction = ((scaled >> exponent) - (1 << mantissa)) + (scaled >> (exponent - 1) & 1) * (exponent > 0)
    return np.where(counts > 0, 1 + (exponent << mantissa) + fraction, 0)


@dataclass(frozen=True, eq=False)
class AnsModel:
    """A static model.

    Attributes:
        low: the smallest symbol.
        levels: (span,) int64; how often each symbol of the span occurs, as small floating-point numbers.
        mantissa: bits of their mantissas.
    """

    low: int
    levels: NDArray[np.int64]
    mantissa: int

    @cached_property
    def probabilities(self) -> NDArray[np.int64]:
        """(max(span, 2),) int64, each 1 or more, their sum 2^24. A span of one symbol has a second one, never coded."""
        weights = _weights_of(self.levels, self.mantissa)
        if len(weights) == 1:
            weights = np.append(weights, 0)
        scale = 1 << max(0, int(weights.max()).bit_length() - (62 - PRECISION))
        shares = weights // scale * (_TOTAL - len(weights)) // (weights // scale).sum()
        top = int(shares.argmax())
        shares[top] += _TOTAL - len(weights) - shares.sum()
        excess = max(0, int(shares[top]) + 1 - _MOST)
        shares[top] -= excess
        shares[0 if top else 1] += excess
        probabilities: NDArray[np.int64] = shares + 1
        return probabilities

    @property
    def dtype(self) -> type[np.int16] | type[np.int32]:
        """The smaller one that holds all symbols, and their distances from the lowest."""
        span = len(self.levels)
        return np.int16 if self.low >= -(1 << 15) and max(span, self.low + span) <= 1 << 15 else np.int32

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(slots + 1,) int64: the cumulated probabilities."""
        return np.concatenate([[0], np.cumsum(self.probabilities)])

    @cached_property
    def _categorical(self) -> constriction.stream.model.Categorical:
        # constriction gives symbol i the probability floor(share * free / sum of shares) + 1 in all; where the shares
        # sum to what is free the quotient is 1, and the probabilities are these integers.
        return constriction.stream.model.Categorical((self.probabilities - 1).astype(np.float64), perfect=False)


class AnsCoder(Coder):
    """Static ANS; see the module's docstring. `Model` is an AnsModel."""

    id = 2

    def fit(self, histogram: Histogram) -> AnsModel:
        def cost(model: AnsModel) -> int:
            return len(self.table(model)) + self.payload_bytes(model, histogram)

        models = [AnsModel(histogram.low, _levels_of(histogram.counts, m), m) for m in _MANTISSAS]
        return min(models, key=cost)

    def table(self, model: AnsModel) -> bytes:
        writer = ByteWriter()
        writer.varint(zigzag(model.low))
        writer.varint(len(model.levels) - 1)
        steps = np.diff(model.levels, prepend=0)
        values = np.where(steps >= 0, 2 * steps, -2 * steps - 1)
        lengths = [int(_golomb_lengths(values, k).sum()) for k in range(_MAX_GOLOMB + 1)]
        k = lengths.index(min(lengths))
        writer.u8(model.mantissa << 4 | k)
        writer.raw(_golomb_encode(values, k).tobytes())
        return writer.getvalue()

    def read_table(self, reader: ByteReader) -> AnsModel:
        low = unzigzag(reader.varint())
        span = reader.varint() + 1
        code = reader.u8()
        mantissa, k = code >> 4, code & 0x0F
        if abs(low) > _MAX_SPAN or span > min(_MAX_SPAN, 8 * reader.remaining):
            raise reader.fail(f"ANS table: {span} symbols from {low} up are more than it can hold")
        if mantissa not in _MANTISSAS or k > _MAX_GOLOMB:
            raise reader.fail(f"ANS table: unknown form {code:#x}")
        values = _golomb_decode(reader, span, k)
        levels = np.cumsum(np.where(values % 2 == 0, values // 2, -(values + 1) // 2))
        if int(levels.min()) < 0 or int(levels.max()) > _MAX_EXPONENT << mantissa:
            raise reader.fail("ANS table: a weight out of range")
        if levels[0] == 0 or levels[-1] == 0:
            raise reader.fail("ANS table: its first and last symbol must occur")
        return AnsModel(low, levels, mantissa)

    def bits(self, model: AnsModel, histogram: Histogram) -> int:
        start = histogram.low - model.low
        shares = model.probabilities[start : start + len(histogram.counts)]
        return int(np.ceil((histogram.counts * (PRECISION - np.log2(shares))).sum()))

    def payload_bytes(self, model: AnsModel, histogram: Histogram) -> int:
        return super().payload_bytes(model, histogram) + PRECISION // 8 * _streams(int(histogram.counts.sum()))

    def encode(self, model: AnsModel, symbols: Symbols) -> bytes:
        writer = ByteWriter()
        streams = []
        for part in np.array_split(symbols.astype(np.int32) - model.low, _streams(len(symbols))):
            coder = constriction.stream.stack.AnsCoder(_START)
            coder.encode_reverse(part, model._categorical)
            streams.append(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))
        for stream in streams[:-1]:
            writer.varint(len(stream))
        for stream in streams:
            writer.raw(stream)
        return writer.getvalue()

    def decode(self, model: AnsModel, payload: memoryview, count: int, reader: ByteReader) -> Symbols:
        if count > SYMBOLS_PER_BYTE * len(payload):
            raise reader.fail(f"ANS payload: {count} symbols cannot fit in {len(payload)} bytes")
        inner = ByteReader(payload, f"{reader.where}, ANS payload")
        number = _streams(count)
        lengths = [inner.varint() for _ in range(number - 1)]
        streams = [inner.raw(length) for length in lengths] + [inner.raw(inner.remaining)]
        words = []
        for stream in streams:
            if len(stream) == 0 or stream[-1] == 0:
                raise inner.fail("a stream that is empty or ends in a zero byte")
            words.append(np.frombuffer(bytes(stream) + bytes(-len(stream) % 4), dtype="<u4").astype(np.uint32))
        sizes = [len(part) for part in np.array_split(np.empty(count, np.int8), number)]
        symbols = np.empty(count, dtype=model.dtype)
        if fast.available(count):
            ended = fast.ans_decode(words, sizes, model.starts, symbols)
        else:
            ended = _decode(words, sizes, model, symbols)
        if not ended:
            raise inner.fail(f"its bits do not hold {count} symbols")
        symbols += model.low
        return symbols


def _decode(words: list[NDArray[np.uint32]], sizes: list[int], model: AnsModel, symbols: Symbols) -> bool:
    """Fills `symbols`; says whether every stream ended as it has to."""
    ended, at = True, 0
    for stream, size in zip(words, sizes, strict=True):
        coder = constriction.stream.stack.AnsCoder(stream)
        symbols[at : at + size] = coder.decode(model._categorical, size)
        at += size
        ended &= np.array_equal(coder.get_compressed(), _START)
    return ended


def _streams(count: int) -> int:
    return 4 if count >= _MANY else 1


def _golomb_lengths(values: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Bits of each value in the exponential Golomb code of order k."""
    width = np.frexp(((values >> k) + 1).astype(np.float64))[1].astype(np.int64)
    return 2 * width - 1 + k


def _golomb_encode(values: NDArray[np.int64], k: int) -> bitarray:
    bits = bitarray()
    for value in values.tolist():
        digits = f"{value + (1 << k):b}"
        bits.extend("0" * (len(digits) - 1 - k) + digits)
    return bits


def _golomb_decode(reader: ByteReader, count: int, k: int) -> NDArray[np.int64]:
    """Values off the reader, to the end of the byte in which the last one ends."""
    longest = 2 * 16 + k
    bits = bitarray()
    bits.frombytes(bytes(reader.peek(min(reader.remaining, (count * longest + 7) // 8))))
    values = np.empty(count, dtype=np.int64)
    at = 0
    for i in range(count):
        one = bits.find(1, at)
        width = one - at + 1 + k
        if one < 0 or one - at >= 16 or one + width > len(bits):
            raise reader.fail("ANS table: ends too early, or holds a number that is too large")
        values[i] = int(bits[one : one + width].to01(), 2) - (1 << k)
        at = one + width
    whole = (at + 7) // 8
    reader.raw(whole)
    if bits[at : 8 * whole].any():
        raise reader.fail("ANS table: the padding after its last number is not zero")
    return values


CODERS.register("ans")(AnsCoder())
