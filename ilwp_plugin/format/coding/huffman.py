"""Canonical Huffman codes of at most 16 bits: only code lengths are stored, never probabilities.

The table holds the smallest symbol, the number of symbols in its span and the code length of each (0: does not occur),
these lengths being Huffman-coded themselves as in DEFLATE. Long payloads are decoded by bitarray where it is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.coding.base import CODERS, WIDEST, Coder, Histogram, Run, Segment, Symbols, smallest_dtype
from ilwp_plugin.format.coding.bits import pack_bytes, pack_words, read_fields
from ilwp_plugin.format.stream import ByteReader, ByteWriter, unzigzag, zigzag

__all__ = ["HuffmanCode", "HuffmanCoder", "MAX_LENGTH", "canonical_codes", "code_lengths"]

MAX_LENGTH = 16
_MAX_META_LENGTH = 7
_META_BITS = 3
_WORTH = 1 << 12
"""So many symbols make up for loading bitarray."""
_CHUNK = 1 << 16
"""Symbols that are looked at at one time."""
_PIECE = 1 << 16
"""Bytes of payload that are looked at at one time, eight positions each."""


def code_lengths(counts: NDArray[np.int64], max_length: int = MAX_LENGTH) -> NDArray[np.uint8]:
    """Lengths of an optimal prefix code no longer than `max_length` bits, by package-merge (Larmore, Hirschberg 1990).

    Args:
        counts: (span,) occurrences; a zero gets length 0.
        max_length: in bits.

    Returns:
        (span,) uint8. The Kraft sum is exactly 1, but for a single symbol, whose length is 1.
    """
    used = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), dtype=np.uint8)
    if len(used) == 1:
        lengths[used] = 1
        return lengths
    if len(used) > 1 << max_length:
        raise ValueError(f"{len(used)} symbols have no code of at most {max_length} bits")
    order = used[np.argsort(counts[used], kind="stable")]
    leaves = counts[order]
    merged = leaves
    is_leaf = [np.ones(len(leaves), dtype=bool)]
    for _ in range(max_length - 1):
        packages = merged[: len(merged) // 2 * 2].reshape(-1, 2).sum(axis=1)
        both = np.concatenate([leaves, packages])
        # Stable: of equal weights the leaf comes first, so that equal histograms get equal codes everywhere.
        rank = np.argsort(both, kind="stable")
        merged = both[rank]
        is_leaf.append(rank < len(leaves))
    # The first 2n - 2 items of the last list are bought; each package bought buys two items of the list before it.
    take = 2 * len(leaves) - 2
    for leaf in reversed(is_leaf):
        bought = int(leaf[:take].sum())
        lengths[order[:bought]] += 1
        take = 2 * (take - bought)
    return lengths


def canonical_codes(lengths: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The canonical code words: by length, then by symbol, counted upwards.

    Args:
        lengths: (span,) code lengths; 0 where a symbol does not occur.

    Returns:
        (span,) code words, most significant bit first; 0 where the length is 0.
    """
    codes = np.zeros(len(lengths), dtype=np.int64)
    code = 0
    for length in range(1, int(lengths.max()) + 1):
        members = np.flatnonzero(lengths == length)
        codes[members] = code + np.arange(len(members))
        code = (code + len(members)) << 1
    return codes


@dataclass(frozen=True, eq=False)
class HuffmanCode:
    """A canonical code.

    Attributes:
        low: the smallest symbol.
        lengths: (span,) uint8 code lengths of low, low + 1, ...; 0 where a symbol does not occur.
    """

    low: int
    lengths: NDArray[np.uint8]

    @property
    def dtype(self) -> type[np.int16] | type[np.int32]:
        """The smaller one that holds all symbols."""
        return smallest_dtype(self.low, self.low + len(self.lengths) - 1)

    @cached_property
    def words(self) -> NDArray[np.int64]:
        """(span,) code words."""
        return canonical_codes(self.lengths)

    @property
    def canonical(self) -> tuple[list[int], list[int]]:
        """Number of code words by length, and the symbols in the order of their code words."""
        counts = np.bincount(self.lengths)
        counts[0] = 0
        return counts.tolist(), (self.low + self._in_order).tolist()

    @property
    def _in_order(self) -> NDArray[np.int64]:
        """Positions of the symbols that occur, in the order of their code words."""
        order = np.argsort(self.lengths, kind="stable")
        return order[int((self.lengths == 0).sum()) :]

    @cached_property
    def lookup(self) -> tuple[int, NDArray[np.uint8], NDArray[np.int64]]:
        """A width, and for each string of so many bits the length of the code word that it begins with and its symbol.

        The length is 0 where no code word fits.
        """
        width = int(self.lengths.max())
        order = self._in_order
        repeats = 1 << (width - self.lengths[order].astype(np.int64))
        lengths, symbols = np.zeros(1 << width, np.uint8), np.zeros(1 << width, np.int64)
        filled = int(repeats.sum())
        lengths[:filled] = np.repeat(self.lengths[order], repeats)
        symbols[:filled] = np.repeat(self.low + order, repeats)
        return width, lengths, symbols

    def check(self, reader: ByteReader, what: str) -> None:
        """Raises FormatError unless the lengths are those of a complete code, or of one symbol."""
        used = self.lengths[self.lengths > 0].astype(np.int64)
        if len(used) == 0:
            raise reader.fail("table", f"{what}: no symbol has a code")
        if len(used) == 1:
            if used[0] != 1:
                raise reader.fail("table", f"{what}: the code length of its only symbol is {used[0]}, expected 1")
            return
        kraft = int((1 << (MAX_LENGTH - used)).sum())
        if kraft != 1 << MAX_LENGTH:
            side = "more" if kraft > 1 << MAX_LENGTH else "fewer"
            raise reader.fail("table", f"{what}: its lengths describe {side} code words than there are (Kraft sum)")


def _decode(
    code: HuffmanCode, payload: memoryview, count: int, reader: ByteReader, what: str, fault: str
) -> tuple[Symbols, int]:
    """Symbols from the front of the payload, and the number of bits that they take."""
    fast = count >= _WORTH and importlib.util.find_spec("bitarray") is not None
    symbols = (_decode_by_bitarray if fast else _decode_by_numpy)(code, payload, count)
    used = -1 if symbols is None else _bits_of(code, symbols)
    if symbols is None or used > 8 * len(payload):
        raise reader.fail(fault, f"{what}: its bits do not hold {count} symbols")
    return symbols, used


def _bits_of(code: HuffmanCode, symbols: Symbols) -> int:
    """Of the code words of symbols that were decoded."""
    return sum(
        int(code.lengths[symbols[i : i + _CHUNK].astype(np.int64) - code.low].sum(dtype=np.int64))
        for i in range(0, len(symbols), _CHUNK)
    )


def _decode_by_bitarray(code: HuffmanCode, payload: memoryview, count: int) -> Symbols | None:
    from bitarray import bitarray
    from bitarray.util import canonical_decode

    bits = bitarray()
    bits.frombytes(bytes(payload))
    try:
        return np.fromiter(canonical_decode(bits, *code.canonical), dtype=code.dtype, count=count)
    except ValueError:
        return None


def _decode_by_numpy(code: HuffmanCode, payload: memoryview, count: int) -> Symbols | None:
    """Looks up the code word at every bit, then walks from one to the next."""
    width, lengths, symbols = code.lookup
    data = np.frombuffer(bytes(payload) + bytes(2), np.uint8)
    found = np.empty(count, code.dtype)
    done, at = 0, 0  # symbols, and the bit within the piece
    for start in range(0, len(payload), _PIECE):
        stop = min(start + _PIECE, len(payload))
        piece = data[start : stop + 2].astype(np.uint32)
        n = stop - start
        ahead = piece[:n] << 16 | piece[1 : n + 1] << 8 | piece[2:]
        shifts = np.arange(24 - width, 16 - width, -1, dtype=np.uint32)
        windows = ((ahead[:, None] >> shifts) & np.uint32((1 << width) - 1)).ravel()
        steps, positions = lengths[windows].tobytes(), []
        limit = min(8 * n, at + width * (count - done))
        while at < limit:
            step = steps[at]
            if not step:
                return None
            positions.append(at)
            at += step
        positions = positions[: count - done]
        found[done : done + len(positions)] = symbols[windows[positions]]
        done += len(positions)
        if done == count:
            return found
        at -= 8 * n
    return None


def _check_padding(payload: memoryview, used: int, reader: ByteReader, what: str) -> None:
    """The file form is canonical: the last byte is begun by the last symbol, and its free bits are zero."""
    if (used + 7) // 8 != len(payload):
        raise reader.fail("payload", f"{what}: {len(payload)} bytes, but its symbols end in byte {(used + 7) // 8}")
    if used % 8 and payload[-1] & ((1 << (8 - used % 8)) - 1):
        raise reader.fail("padding", f"{what}: the padding after the last symbol is not zero")


class HuffmanCoder(Coder):
    """The paper's coder; see the module's docstring. `Model` is a HuffmanCode."""

    id = 1
    density = 8

    def fit(self, run: Run) -> HuffmanCode:
        return HuffmanCode(run.histogram.low, code_lengths(run.histogram.counts))

    def table(self, model: HuffmanCode) -> bytes:
        writer = ByteWriter()
        writer.varint(zigzag(model.low))
        writer.varint(len(model.lengths) - 1)
        lengths = model.lengths.astype(np.int64)
        meta = HuffmanCode(0, code_lengths(np.bincount(lengths, minlength=MAX_LENGTH + 1), _MAX_META_LENGTH))
        own = meta.lengths.astype(np.int64)
        writer.raw(pack_bytes(lengths, meta.words, own, first=pack_words(own, np.full(len(own), _META_BITS))))
        return writer.getvalue()

    def read_table(self, reader: ByteReader) -> HuffmanCode:
        low = unzigzag(reader.varint())
        span = reader.varint() + 1
        if abs(low) > WIDEST or span > min(WIDEST, 8 * reader.remaining):
            raise reader.fail("table", f"code table: {span} symbols from {low} up are more than it can hold")
        meta_bits = (MAX_LENGTH + 1) * _META_BITS
        start = reader.peek(min(reader.remaining, (meta_bits + span * _MAX_META_LENGTH + 7) // 8))
        bits = np.unpackbits(np.frombuffer(start, np.uint8))
        if len(bits) < meta_bits:
            raise reader.fail("too-short", "code table: ends too early")
        meta = HuffmanCode(0, read_fields(bits[:meta_bits], _META_BITS).astype(np.uint8))
        meta.check(reader, "code table's own code")
        rest = memoryview(np.packbits(bits[meta_bits:]).tobytes())
        lengths, used = _decode(meta, rest, span, reader, "code table", "table")
        whole = (meta_bits + used + 7) // 8
        _check_padding(reader.raw(whole), meta_bits + used, reader, "code table")
        code = HuffmanCode(low, lengths.astype(np.uint8))
        code.check(reader, "code table")
        if lengths[0] == 0 or lengths[-1] == 0:
            raise reader.fail("table", "code table: its first and last symbol must occur")
        return code

    def bits(self, model: HuffmanCode, histogram: Histogram) -> int:
        start = histogram.low - model.low
        lengths = model.lengths[start : start + len(histogram.counts)]
        return int((lengths.astype(np.int64) * histogram.counts).sum())

    def encode(self, model: HuffmanCode, symbols: Symbols, segments: Sequence[Segment]) -> bytes:
        return pack_bytes(symbols, model.words, model.lengths.astype(np.int64), low=model.low)

    def decode(
        self, model: HuffmanCode, payload: memoryview, segments: Sequence[Segment], reader: ByteReader
    ) -> Symbols:
        count = sum(segment.count for segment in segments)
        self.bound(payload, count, reader)
        symbols, used = _decode(model, payload, count, reader, "Huffman payload", "payload")
        _check_padding(payload, used, reader, "Huffman payload")
        return symbols


CODERS.register("huffman")(HuffmanCoder())
