"""Asymmetric numeral systems (Duda 2009) with a static model: below one bit a symbol where one symbol dominates.

A model gives every symbol of a span a whole number of 2^-24ths; they come from small floating-point weights that are
stored, by integer arithmetic alone, so that every machine derives the same model. constriction does the bit work where
it is installed, numba for long payloads; plain Python reads and writes the same bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.coding import fast
from ilwp_plugin.format.coding.base import CODERS, WIDEST, Coder, Histogram, Run, Segment, Symbols, smallest_dtype
from ilwp_plugin.format.coding.bits import pack_bytes
from ilwp_plugin.format.stream import ByteReader, ByteWriter, unzigzag, zigzag

__all__ = ["AnsCoder", "AnsModel", "PRECISION", "SYMBOLS_PER_BYTE"]

PRECISION = 24
"""Probabilities are multiples of 2^-24, as in constriction's default coders."""

_TOTAL = 1 << PRECISION
_MOST = _TOTAL - (1 << 17)
"""The largest probability: so every symbol costs at least 0.0113 bits, and a count is bounded by its payload."""

SYMBOLS_PER_BYTE = 1024
"""More symbols than this cannot be in one byte of payload."""

_MAX_EXPONENT = 32
_MANTISSAS = range(5)
_MAX_GOLOMB = 7
_MANY = 1 << 16
"""So many symbols are coded in four streams, which a processor decodes side by side."""

_WORTH = 1 << 10
"""So many symbols make up for loading constriction."""
_PIECE = 1 << 16
"""Symbols of a piece."""

Pieces = Generator[NDArray[np.int32], None, bool]
"""Symbols from 0; in the end whether the stream ended as it has to."""


def _weights_of(levels: NDArray[np.int64], mantissa: int) -> NDArray[np.int64]:
    """Small floating-point numbers: level 0 is 0, level 1 + (e << m | f) is (2^m + f) * 2^e."""
    exponent, fraction = np.divmod(np.maximum(levels - 1, 0), 1 << mantissa)
    return np.where(levels > 0, ((1 << mantissa) + fraction) << exponent, 0)


def _levels_of(counts: NDArray[np.int64], mantissa: int) -> NDArray[np.int64]:
    """The levels whose weights are nearest to `counts * 2^mantissa`; 0 only for a count of 0."""
    scaled = np.maximum(counts, 1) << mantissa
    exponent = np.frexp(scaled.astype(np.float64))[1].astype(np.int64) - 1 - mantissa
    fraction = ((scaled >> exponent) - (1 << mantissa)) + (scaled >> np.maximum(exponent - 1, 0) & 1) * (exponent > 0)
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
        return smallest_dtype(self.low, max(span, self.low + span) - 1)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(slots + 1,) int64: the cumulated probabilities."""
        return np.concatenate([[0], np.cumsum(self.probabilities)])

    @cached_property
    def categorical(self) -> Any:
        """The same for constriction."""
        import constriction

        # constriction gives symbol i the probability floor(share * free / sum of shares) + 1 in all; where the shares
        # sum to what is free the quotient is 1, and the probabilities are these integers.
        return constriction.stream.model.Categorical((self.probabilities - 1).astype(np.float64), perfect=False)


class AnsCoder(Coder):
    """Static ANS; see the module's docstring. `Model` is an AnsModel."""

    id = 2
    density = SYMBOLS_PER_BYTE

    def fit(self, run: Run) -> AnsModel:
        histogram = run.histogram

        def cost(model: AnsModel) -> int:
            return (min(_golomb_bits(_steps(model))) + 7) // 8 + self.payload_bytes(model, run)

        models = [AnsModel(histogram.low, _levels_of(histogram.counts, m), m) for m in _MANTISSAS]
        return min(models, key=cost)

    def table(self, model: AnsModel) -> bytes:
        writer = ByteWriter()
        writer.varint(zigzag(model.low))
        writer.varint(len(model.levels) - 1)
        values = _steps(model)
        lengths = _golomb_bits(values)
        k = lengths.index(min(lengths))
        writer.u8(model.mantissa << 4 | k)
        writer.raw(pack_bytes(np.arange(len(values)), values + (1 << k), _golomb_lengths(values, k)))
        return writer.getvalue()

    def read_table(self, reader: ByteReader) -> AnsModel:
        low = unzigzag(reader.varint())
        span = reader.varint() + 1
        code = reader.u8()
        mantissa, k = code >> 4, code & 0x0F
        if abs(low) > WIDEST or span > min(WIDEST, 8 * reader.remaining):
            raise reader.fail("table", f"ANS table: {span} symbols from {low} up are more than it can hold")
        if mantissa not in _MANTISSAS or k > _MAX_GOLOMB:
            raise reader.fail("form", f"ANS table: unknown form {code:#x}")
        values = _golomb_decode(reader, span, k)
        levels = np.cumsum(np.where(values % 2 == 0, values // 2, -(values + 1) // 2))
        if int(levels.min()) < 0 or int(levels.max()) > _MAX_EXPONENT << mantissa:
            raise reader.fail("table", "ANS table: a weight out of range")
        if levels[0] == 0 or levels[-1] == 0:
            raise reader.fail("table", "ANS table: its first and last symbol must occur")
        return AnsModel(low, levels, mantissa)

    def bits(self, model: AnsModel, histogram: Histogram) -> int:
        start = histogram.low - model.low
        shares = model.probabilities[start : start + len(histogram.counts)]
        return int(np.ceil((histogram.counts * (PRECISION - np.log2(shares))).sum()))

    def payload_bytes(self, model: AnsModel, run: Run) -> int:
        return super().payload_bytes(model, run) + PRECISION // 8 * _streams(int(run.histogram.counts.sum()))

    def encode(self, model: AnsModel, symbols: Symbols, segments: Sequence[Segment]) -> bytes:
        writer = ByteWriter()
        streams = []
        number = _streams(len(symbols))
        for part in np.array_split(symbols, number):
            words = _encode_by_constriction(model, part) if _has_constriction(len(part)) else _encode(model, part)
            streams.append(words.astype("<u4").tobytes().rstrip(b"\0"))
        for stream in streams[:-1]:
            writer.varint(len(stream))
        for stream in streams:
            writer.raw(stream)
        return writer.getvalue()

    def decode(self, model: AnsModel, payload: memoryview, segments: Sequence[Segment], reader: ByteReader) -> Symbols:
        count = sum(segment.count for segment in segments)
        self.bound(payload, count, reader)
        inner, words, sizes = _open(payload, count, reader)
        symbols = np.empty(count, dtype=model.dtype)
        if fast.available(count):
            if not fast.ans_decode(words, sizes, model.starts, symbols):
                raise _not_held(inner, count)
        else:
            at = 0
            for piece in _decode(words, sizes, model, inner):
                symbols[at : at + len(piece)] = piece
                at += len(piece)
        symbols += symbols.dtype.type(model.low)
        return symbols

    def pieces(
        self, model: AnsModel, payload: memoryview, segments: Sequence[Segment], reader: ByteReader
    ) -> Iterator[Symbols]:
        count = sum(segment.count for segment in segments)
        self.bound(payload, count, reader)
        inner, words, sizes = _open(payload, count, reader)
        for piece in _decode(words, sizes, model, inner):
            yield (piece + piece.dtype.type(model.low)).astype(model.dtype)


def _open(
    payload: memoryview, count: int, reader: ByteReader
) -> tuple[ByteReader, list[NDArray[np.uint32]], list[int]]:
    """A reader to complain with, the words of each stream and the number of its symbols."""
    inner = ByteReader(payload, f"{reader.where}, ANS payload")
    number = _streams(count)
    lengths = [inner.varint() for _ in range(number - 1)]
    streams = [inner.raw(length) for length in lengths] + [inner.raw(inner.remaining)]
    words = []
    for stream in streams:
        if len(stream) == 0 or stream[-1] == 0:
            raise inner.fail("payload", "a stream that is empty or ends in a zero byte")
        words.append(np.frombuffer(bytes(stream) + bytes(-len(stream) % 4), dtype="<u4").astype(np.uint32))
    return inner, words, [count // number + (i < count % number) for i in range(number)]


def _not_held(reader: ByteReader, count: int) -> Exception:
    return reader.fail("payload", f"its bits do not hold {count} symbols")


def _has_constriction(count: int) -> bool:
    return count >= _WORTH and importlib.util.find_spec("constriction") is not None


def _decode(
    words: list[NDArray[np.uint32]], sizes: list[int], model: AnsModel, reader: ByteReader
) -> Iterator[NDArray[np.int32]]:
    """The symbols in pieces, from 0; raises unless every stream ends as it has to."""
    decode = _decode_by_constriction if _has_constriction(sum(sizes)) else _decode_by_python
    for stream, size in zip(words, sizes, strict=True):
        ended = yield from decode(stream, size, model)
        if not ended:
            raise _not_held(reader, sum(sizes))


def _decode_by_constriction(words: NDArray[np.uint32], size: int, model: AnsModel) -> Pieces:
    import constriction

    coder = constriction.stream.stack.AnsCoder(words)
    for start in range(0, size, _PIECE):
        yield coder.decode(model.categorical, min(_PIECE, size - start))
    return np.array_equal(coder.get_compressed(), [_TOTAL])


_BUCKET_BITS = 12


def _decode_by_python(words: NDArray[np.uint32], size: int, model: AnsModel) -> Pieces:
    """One symbol after the other, in Python's whole numbers."""
    starts, shares, left = model.starts.tolist(), model.probabilities.tolist(), words.tolist()
    within = PRECISION - _BUCKET_BITS
    buckets = (np.searchsorted(model.starts, np.arange(1 << _BUCKET_BITS) << within, "right") - 1).tolist()
    mask, state, pop = _TOTAL - 1, left.pop(), left.pop
    if left:
        state = state << 32 | pop()
    for start in range(0, size, _PIECE):
        piece = [0] * min(_PIECE, size - start)
        for i in range(len(piece)):
            quantile = state & mask
            symbol = buckets[quantile >> within]
            while starts[symbol + 1] <= quantile:
                symbol += 1
            piece[i] = symbol
            state = (state >> PRECISION) * shares[symbol] + quantile - starts[symbol]
            if state < 4294967296 and left:
                state = state << 32 | pop()
        yield np.array(piece, np.int32)
    return state == _TOTAL and not left


def _positions(model: AnsModel, symbols: Symbols) -> NDArray[np.int32]:
    """In the model's table."""
    return symbols.astype(np.int32) - np.int32(model.low)


def _encode_by_constriction(model: AnsModel, symbols: Symbols) -> NDArray[np.uint32]:
    import constriction

    # The coder's first state. No probability is larger, so no symbol leaves it as it is, and no symbol is free.
    coder = constriction.stream.stack.AnsCoder(np.array([_TOTAL], dtype=np.uint32))
    for end in range(len(symbols), 0, -_ENCODED):
        coder.encode_reverse(_positions(model, symbols[max(0, end - _ENCODED) : end]), model.categorical)
    words: NDArray[np.uint32] = coder.get_compressed()
    return words


def _encode(model: AnsModel, symbols: Symbols) -> NDArray[np.uint32]:
    starts, shares = model.starts.tolist(), model.probabilities.tolist()
    words: list[int] = []
    state = _TOTAL
    for symbol in reversed(_positions(model, symbols).tolist()):
        share = shares[symbol]
        if state >> (64 - PRECISION) >= share:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // share << PRECISION) + state % share + starts[symbol]
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return np.array(words, np.uint32)


_ENCODED = 1 << 20
"""Symbols that are encoded at one time; it does not change the words."""


def _streams(count: int) -> int:
    return 4 if count >= _MANY else 1


def _steps(model: AnsModel) -> NDArray[np.int64]:
    """The differences of successive levels, zigzag."""
    steps = np.diff(model.levels, prepend=0)
    return np.where(steps >= 0, 2 * steps, -2 * steps - 1)


def _golomb_lengths(values: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Bits of each value in the exponential Golomb code of order k."""
    width = np.frexp(((values >> k) + 1).astype(np.float64))[1].astype(np.int64)
    return 2 * width - 1 + k


def _golomb_bits(values: NDArray[np.int64]) -> list[int]:
    """Bits of all values together, for each order."""
    return [int(_golomb_lengths(values, k).sum()) for k in range(_MAX_GOLOMB + 1)]


def _golomb_decode(reader: ByteReader, count: int, k: int) -> NDArray[np.int64]:
    """Values off the reader, to the end of the byte in which the last one ends."""
    longest = 2 * 16 + k
    data = bytes(reader.peek(min(reader.remaining, (count * longest + 7) // 8)))
    text = f"{int.from_bytes(b'1' + data, 'big'):b}"[-8 * len(data) :] if data else ""
    values = np.empty(count, dtype=np.int64)
    at = 0
    for i in range(count):
        one = text.find("1", at, at + 16)
        width = one - at + 1 + k
        if one < 0 or one + width > len(text):
            raise reader.fail("table", "ANS table: ends too early, or holds a number that is too large")
        values[i] = int(text[one : one + width], 2) - (1 << k)
        at = one + width
    whole = (at + 7) // 8
    reader.raw(whole)
    if "1" in text[at : 8 * whole]:
        raise reader.fail("padding", "ANS table: the padding after its last number is not zero")
    return values


CODERS.register("ans")(AnsCoder())
