"""Canonical Huffman codes of at most 16 bits: only code lengths are stored, never probabilities.

The table holds the smallest symbol, the number of symbols in its span and the code length of each (0: does not occur),
these lengths being Huffman-coded themselves as in DEFLATE. bitarray's C coder does the bit work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from bitarray import bitarray
from bitarray.util import ba2int, canonical_decode, int2ba
from numpy.typing import NDArray

from ilwp_plugin.coding.base import CODERS, Coder, Histogram, Symbols
from ilwp_plugin.stream import ByteReader, ByteWriter, unzigzag, zigzag

__all__ = ["HuffmanCode", "HuffmanCoder", "MAX_LENGTH", "canonical_codes", "code_lengths"]

MAX_LENGTH = 16
_MAX_SPAN = 1 << MAX_LENGTH
_MAX_META_LENGTH = 7
_META_BITS = 3
_CHUNK = 1 << 20
"""Symbols that are Python objects at one time."""


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
    def words(self) -> dict[int, bitarray]:
        """The code word of each symbol that occurs."""
        codes = canonical_codes(self.lengths)
        return {
            self.low + i: int2ba(int(codes[i]), int(self.lengths[i])) for i in np.flatnonzero(self.lengths).tolist()
        }

    @property
    def canonical(self) -> tuple[list[int], list[int]]:
        """Number of code words by length, and the symbols in the order of their code words."""
        by_length = np.argsort(self.lengths, kind="stable")
        symbols = self.low + by_length[int((self.lengths == 0).sum()) :]
        counts = np.bincount(self.lengths)
        counts[0] = 0
        return counts.tolist(), symbols.tolist()

    def check(self, reader: ByteReader, what: str) -> None:
        """Raises FormatError unless the lengths are those of a complete code, or of one symbol."""
        used = self.lengths[self.lengths > 0].astype(np.int64)
        if len(used) == 0:
            raise reader.fail(f"{what}: no symbol has a code")
        if len(used) == 1:
            if used[0] != 1:
                raise reader.fail(f"{what}: the code length of its only symbol is {used[0]}, expected 1")
            return
        kraft = int((1 << (MAX_LENGTH - used)).sum())
        if kraft != 1 << MAX_LENGTH:
            side = "more" if kraft > 1 << MAX_LENGTH else "fewer"
            raise reader.fail(f"{what}: its lengths describe {side} code words than there are (Kraft sum)")


def _encode(code: HuffmanCode, symbols: Symbols) -> bitarray:
    bits, words = bitarray(), code.words
    for start in range(0, len(symbols), _CHUNK):
        bits.encode(words, symbols[start : start + _CHUNK].tolist())
    return bits


def _decode(code: HuffmanCode, payload: memoryview, count: int, reader: ByteReader, what: str) -> tuple[Symbols, int]:
    """Symbols from the front of the payload, and the number of bits that they take."""
    if count > 8 * len(payload):  # every symbol takes a bit or more
        raise reader.fail(f"{what}: {count} symbols cannot fit in {len(payload)} bytes")
    bits = bitarray()
    bits.frombytes(bytes(payload))
    try:
        symbols = np.fromiter(canonical_decode(bits, *code.canonical), dtype=np.int64, count=count)
    except ValueError as error:
        raise reader.fail(f"{what}: its bits do not hold {count} symbols ({error})") from None
    used = int(code.lengths[symbols - code.low].sum(dtype=np.int64))
    return symbols, used


def _check_padding(payload: memoryview, used: int, reader: ByteReader, what: str) -> None:
    """The file form is canonical: the last byte is begun by the last symbol, and its free bits are zero."""
    if (used + 7) // 8 != len(payload):
        raise reader.fail(f"{what}: {len(payload)} bytes, but its symbols end in byte {(used + 7) // 8}")
    if used % 8 and payload[-1] & ((1 << (8 - used % 8)) - 1):
        raise reader.fail(f"{what}: the padding after the last symbol is not zero")


class HuffmanCoder(Coder):
    """The paper's coder; see the module's docstring. `Model` is a HuffmanCode."""

    id = 1

    def fit(self, histogram: Histogram) -> HuffmanCode:
        return HuffmanCode(histogram.low, code_lengths(histogram.counts))

    def table(self, model: HuffmanCode) -> bytes:
        writer = ByteWriter()
        writer.varint(zigzag(model.low))
        writer.varint(len(model.lengths) - 1)
        lengths = model.lengths.astype(np.int64)
        meta = HuffmanCode(0, code_lengths(np.bincount(lengths, minlength=MAX_LENGTH + 1), _MAX_META_LENGTH))
        bits = bitarray()
        for length in meta.lengths.tolist():
            bits += int2ba(length, _META_BITS)
        bits += _encode(meta, lengths)
        writer.raw(bits.tobytes())
        return writer.getvalue()

    def read_table(self, reader: ByteReader) -> HuffmanCode:
        low = unzigzag(reader.varint())
        span = reader.varint() + 1
        meta_bytes = ((MAX_LENGTH + 1) * _META_BITS + 7) // 8
        if abs(low) > _MAX_SPAN or span > min(_MAX_SPAN, 8 * reader.remaining):
            raise reader.fail(f"code table: {span} symbols from {low} up are more than it can hold")
        start = reader.peek(min(reader.remaining, meta_bytes + (span * _MAX_META_LENGTH + 7) // 8))
        bits = bitarray()
        bits.frombytes(bytes(start))
        meta_bits = (MAX_LENGTH + 1) * _META_BITS
        if len(bits) < meta_bits:
            raise reader.fail("code table: ends too early")
        meta_lengths = [ba2int(bits[i : i + _META_BITS]) for i in range(0, meta_bits, _META_BITS)]
        meta = HuffmanCode(0, np.array(meta_lengths, dtype=np.uint8))
        meta.check(reader, "code table's own code")
        lengths, used = _decode(meta, memoryview(bits[meta_bits:].tobytes()), span, reader, "code table")
        whole = (meta_bits + used + 7) // 8
        _check_padding(reader.raw(whole), meta_bits + used, reader, "code table")
        code = HuffmanCode(low, lengths.astype(np.uint8))
        code.check(reader, "code table")
        if lengths[0] == 0 or lengths[-1] == 0:
            raise reader.fail("code table: its first and last symbol must occur")
        return code

    def bits(self, model: HuffmanCode, histogram: Histogram) -> int:
        start = histogram.low - model.low
        lengths = model.lengths[start : start + len(histogram.counts)]
        return int((lengths.astype(np.int64) * histogram.counts).sum())

    def encode(self, model: HuffmanCode, symbols: Symbols) -> bytes:
        return _encode(model, symbols).tobytes()

    def decode(self, model: HuffmanCode, payload: memoryview, count: int, reader: ByteReader) -> Symbols:
        symbols, used = _decode(model, payload, count, reader, "Huffman payload")
        _check_padding(payload, used, reader, "Huffman payload")
        return symbols


CODERS.register("huffman")(HuffmanCoder())
