"""Against a textbook Huffman, scipy's entropy, and the package's own reading of what it wrote."""

import heapq
import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.coding import CODERS, Histogram, HuffmanCode, HuffmanCoder, Run, Segment, huffman
from ilwp_plugin.format.coding.huffman import MAX_LENGTH, canonical_codes, code_lengths
from ilwp_plugin.format.stream import ByteReader, ByteWriter, zigzag

CODER = HuffmanCoder()


def textbook_bits(counts: list[int]) -> int:
    """Total bits of a Huffman code of any length: the sum of all merged weights."""
    heap = [c for c in counts if c]
    heapq.heapify(heap)
    total = sum(heap) if len(heap) == 1 else 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def reader(data: bytes) -> ByteReader:
    return ByteReader(memoryview(data), "test")


def encode(model: HuffmanCode, symbols: NDArray[np.int64]) -> bytes:
    return CODER.encode(model, symbols, [Segment.flat(len(symbols))])


def decode(model: HuffmanCode, payload: bytes, count: int) -> NDArray[np.int64]:
    """With bitarray and without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huffman, "_WORTH", 0)
        found = _decoded(model, payload, count)
        patch.setattr(huffman, "_WORTH", 1 << 60)
        other = _decoded(model, payload, count)
    assert np.array_equal(found, other) and found.dtype == other.dtype
    return found


def _decoded(model: HuffmanCode, payload: bytes, count: int) -> NDArray[np.int64]:
    return CODER.decode(model, memoryview(payload), [Segment.flat(count)], reader(b""))


def round_trip(symbols: NDArray[np.int64]) -> None:
    run = Run.of(symbols)
    model = CODER.fit(run)
    table, payload = CODER.table(model), encode(model, symbols)
    assert len(payload) == (CODER.bits(model, run.histogram) + 7) // 8 == CODER.payload_bytes(model, run)
    r = reader(table)
    read = CODER.read_table(r)
    r.finish()
    assert read.low == model.low and np.array_equal(read.lengths, model.lengths)
    decoded = decode(read, payload, len(symbols))
    assert np.array_equal(decoded, symbols)


@given(hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 500)).filter(lambda c: c.any()))
def test_lengths_are_optimal(counts: NDArray[np.int64]) -> None:
    lengths = code_lengths(counts)
    assert int((lengths * counts).sum()) == textbook_bits(counts.tolist())
    assert ((lengths > 0) == (counts > 0)).all()


def test_lengths_are_limited_and_complete() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(np.array(fibonacci))
    assert lengths.max() == MAX_LENGTH
    assert sum(2.0 ** -int(length) for length in lengths) == 1


def test_limited_lengths_are_optimal_by_brute_force() -> None:
    counts = np.array([1, 1, 2, 3, 5, 9])
    best = min(
        sum(length * count for length, count in zip(lengths, counts.tolist(), strict=True))
        for lengths in itertools.product(range(1, 4), repeat=6)
        if sum(2.0**-length for length in lengths) <= 1
    )
    assert int((code_lengths(counts, 3) * counts).sum()) == best


def test_codes_are_prefix_free_and_canonical() -> None:
    lengths = code_lengths(np.array([5, 0, 1, 7, 2, 2, 9]))
    words = [format(c, f"0{n}b") for c, n in zip(canonical_codes(lengths), lengths, strict=True) if n]
    assert not any(a != b and b.startswith(a) for a in words for b in words)
    by_length = sorted(words, key=len)
    assert by_length == sorted(words), "shorter words come first in numeric order"


@given(hnp.arrays(np.int64, st.integers(1, 300), elements=st.integers(-127, 127)))
def test_round_trip(symbols: NDArray[np.int64]) -> None:
    round_trip(symbols)


@pytest.mark.parametrize(
    "symbols",
    [
        np.zeros(1, dtype=np.int64),
        np.full(1000, -5),
        np.arange(-127, 128),
        np.arange(1 << MAX_LENGTH),
        np.array([-(1 << 16), (1 << 16) - 2 - (1 << 16)]),
    ],
    ids=["one", "constant", "every code", "largest alphabet", "widest span"],
)
def test_round_trip_of_edge_cases(symbols: NDArray[np.int64]) -> None:
    round_trip(symbols)


def test_one_symbol_costs_one_bit_each() -> None:
    model = CODER.fit(Run.of(np.full(1000, 3)))
    assert len(encode(model, np.full(1000, 3))) == 125


@given(hnp.arrays(np.int64, st.integers(1, 200), elements=st.integers(-9, 9)))
def test_entropy_is_scipys(symbols: NDArray[np.int64]) -> None:
    histogram = Histogram.of(symbols)
    assert histogram.entropy == pytest.approx(scipy.stats.entropy(histogram.counts, base=2), abs=1e-12)
    model = CODER.fit(Run.of(symbols))
    assert CODER.bits(model, histogram) >= histogram.entropy * len(symbols) - 1e-6


@given(
    hnp.arrays(np.int64, st.integers(1, 50), elements=st.integers(-9, 9)),
    hnp.arrays(np.int64, st.integers(1, 50), elements=st.integers(20, 30)),
)
def test_histograms_add_up(a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    both = Histogram.of(np.concatenate([a, b]))
    added = Histogram.of(a) + Histogram.of(b)
    assert added.low == both.low and np.array_equal(added.counts, both.counts)


def table(low: int, lengths: list[int]) -> bytes:
    """A table with any lengths, also impossible ones."""
    return CODER.table(HuffmanCode(low, np.array(lengths, dtype=np.uint8)))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 1, 1], "more code words than there are"),
        ([1, 2], "fewer code words than there are"),
        ([2], "only symbol is 2, expected 1"),
        ([0], "no symbol has a code"),
        ([0, 1, 1], "first and last symbol must occur"),
        ([1, 1, 0], "first and last symbol must occur"),
    ],
)
def test_bad_lengths_are_refused(lengths: list[int], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        CODER.read_table(reader(table(0, lengths)))


def test_every_prefix_of_a_table_is_refused() -> None:
    data = table(-3, [2, 2, 2, 3, 3])
    for end in range(len(data)):
        with pytest.raises(FormatError):
            CODER.read_table(reader(data[:end]))


def test_huge_alphabet_is_refused_before_allocation() -> None:
    writer = ByteWriter()
    writer.varint(zigzag(0))
    writer.varint(1 << 50)
    with pytest.raises(FormatError, match="more than it can hold"):
        CODER.read_table(reader(writer.getvalue() + bytes(100)))


@pytest.mark.parametrize(
    ("payload", "count", "message"),
    [
        (b"\x00", 9, "9 symbols cannot fit in 1 bytes"),
        (b"\xff", 8, "do not hold 8 symbols"),
        (b"\x00\x00", 3, "2 bytes, but its symbols end in byte 1"),
        (b"\x01", 3, "padding"),
    ],
)
def test_bad_payloads_are_refused(payload: bytes, count: int, message: str) -> None:
    code = HuffmanCode(0, np.array([1, 2, 2], dtype=np.uint8))
    for worth in (0, 1 << 60):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(FormatError, match=message):
            patch.setattr(huffman, "_WORTH", worth)
            _decoded(code, payload, count)


def test_code_words_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bitarray a payload is looked at in pieces; code words may begin in one and end in the next."""
    monkeypatch.setattr(huffman, "_PIECE", 3)
    symbols = np.random.default_rng(0).geometric(0.3, 2000)
    model = CODER.fit(Run.of(symbols))
    assert int(model.lengths.max()) > 9
    assert np.array_equal(decode(model, encode(model, symbols), len(symbols)), symbols)


def test_long_strings_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.random.default_rng(0).geometric(0.3, 5000)
    model = CODER.fit(Run.of(symbols))
    whole = encode(model, symbols)
    monkeypatch.setattr("ilwp_plugin.format.coding.bits._CHUNK", 7)
    assert encode(model, symbols) == whole


def test_registered() -> None:
    assert isinstance(CODERS["huffman"], HuffmanCoder)
    assert len({coder.id for coder in CODERS.values()}) == len(list(CODERS))
