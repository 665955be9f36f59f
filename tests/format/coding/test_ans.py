"""ANS against a textbook coder in whole numbers, and against the entropy of what it codes."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.coding import CODERS, AnsCoder, AnsModel, Histogram, Run, Segment, ans, fast, fit_coder
from ilwp_plugin.format.coding.ans import PRECISION, SYMBOLS_PER_BYTE
from ilwp_plugin.format.stream import ByteReader

CODER = AnsCoder()
NEVER = 1 << 60


def laplace(count: int, scale: float, seed: int = 0) -> np.ndarray:
    return np.round(np.random.default_rng(seed).laplace(0, scale, count)).astype(np.int64)


def reader(data: bytes = b"") -> ByteReader:
    return ByteReader(memoryview(data), "test")


def encode(model: AnsModel, symbols: np.ndarray) -> bytes:
    return CODER.encode(model, symbols, [Segment.flat(len(symbols))])


def decode(model: AnsModel, payload: bytes, count: int) -> np.ndarray:
    return CODER.decode(model, memoryview(payload), [Segment.flat(count)], reader(payload))


def textbook(symbols: list[int], model: AnsModel) -> bytes:
    """One stream: Python's whole numbers as the state, words of 32 bits pushed when it would pass 64."""
    probabilities, starts = model.probabilities.tolist(), model.starts.tolist()
    state, words = 1 << PRECISION, []
    for symbol in reversed(symbols):
        i = symbol - model.low
        if state >> (64 - PRECISION) >= probabilities[i]:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // probabilities[i] << PRECISION) + state % probabilities[i] + starts[i]
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return np.array(words, dtype="<u4").tobytes().rstrip(b"\0")


def round_trip(symbols: np.ndarray) -> tuple[AnsModel, bytes]:
    model = CODER.fit(Run.of(symbols))
    read = CODER.read_table(reader(CODER.table(model)))
    assert (read.low, read.probabilities.tolist()) == (model.low, model.probabilities.tolist())
    payload = encode(model, symbols)
    assert np.array_equal(decode(read, payload, len(symbols)), symbols)
    return model, payload


@given(st.lists(st.integers(-300, 300), min_size=1, max_size=400))
@settings(max_examples=60, deadline=None)
def test_round_trip_and_textbook(values: list[int]) -> None:
    symbols = np.array(values, dtype=np.int64)
    model, payload = round_trip(symbols)
    assert payload == textbook(values, model)
    assert int(model.probabilities.sum()) == 1 << PRECISION and int(model.probabilities.min()) >= 1


@pytest.mark.parametrize(
    ("count", "scale", "excess"), [(1_000_000, 1.1, 0.005), (44_640, 1.1, 0.02), (44_640, 40, 0.02)]
)
def test_close_to_the_entropy_with_every_table_counted(count: int, scale: float, excess: float) -> None:
    symbols = laplace(count, scale)
    model, payload = round_trip(symbols)
    entropy_bytes = Histogram.of(symbols).entropy * count / 8
    assert len(payload) + len(CODER.table(model)) < entropy_bytes * (1 + excess)


def test_below_one_bit_a_symbol() -> None:
    symbols = (np.random.default_rng(0).random(100_000) < 0.02).astype(np.int64)
    fit = fit_coder(Run.of(symbols), "auto")
    assert fit.coder is CODERS["ans"] and fit.nbytes < 0.2 * len(symbols) / 8


def test_small_sections_are_huffman_coded_where_that_is_smaller() -> None:
    fits = {name: fit_coder(Run.of(np.array([0, 1, 2, 3] * 4)), name).nbytes for name in ("huffman", "ans", "auto")}
    assert fits["auto"] == min(fits["huffman"], fits["ans"])


def test_a_count_is_bounded_by_its_payload() -> None:
    zeros = np.zeros(1_000_000, dtype=np.int64)
    model, payload = round_trip(zeros)
    assert len(zeros) < SYMBOLS_PER_BYTE * len(payload) < 2 * len(zeros), "as few as possible, and not fewer"
    assert int(model.probabilities.max()) == (1 << 24) - (1 << 17)
    with pytest.raises(FormatError, match="cannot fit") as caught:
        decode(model, payload, 1 << 40)
    assert caught.value.code == "payload"


def test_a_changed_bit_is_never_overlooked() -> None:
    """A stream is refused or decodes to something else; most changes leave a state that no encoder begins with."""
    symbols = laplace(300, 2)
    model, payload = round_trip(symbols)
    refused = 0
    for bit in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            decoded = decode(model, bytes(changed), len(symbols))
        except FormatError:
            refused += 1
        else:
            assert not np.array_equal(decoded, symbols)
    assert refused > 0.98 * 8 * len(payload)


@pytest.mark.parametrize("count", [1 << 16, (1 << 16) + 1, (1 << 16) + 2, (1 << 16) + 3, 300_000])
def test_every_decoder_reads_the_same(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = laplace(count, 3, count)
    model = CODER.fit(Run.of(symbols))
    payload = encode(model, symbols)
    broken = payload[:-1] + bytes([payload[-1] ^ 1])
    segments = [Segment.flat(count)]
    for compiled, worth in ((True, 0), (False, 0), (False, NEVER)):
        monkeypatch.setattr(fast, "available", lambda _, compiled=compiled: compiled)
        monkeypatch.setattr(ans, "_WORTH", worth)
        assert np.array_equal(decode(model, payload, count), symbols)
        pieces = list(CODER.pieces(model, memoryview(payload), segments, reader(payload)))
        assert np.array_equal(np.concatenate(pieces), symbols)
        assert max(map(len, pieces)) <= 1 << 16 and {piece.dtype for piece in pieces} == {np.dtype(np.int16)}
        with pytest.raises(FormatError, match="do not hold"):
            decode(model, broken, count)
        with pytest.raises(FormatError, match="do not hold"):
            list(CODER.pieces(model, memoryview(broken), segments, reader(broken)))


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=200))
@settings(max_examples=30, deadline=None)
def test_both_encoders_write_the_same(values: list[int]) -> None:
    symbols = np.array(values)
    model = CODER.fit(Run.of(symbols))
    with pytest.MonkeyPatch.context() as patch:
        written = []
        for worth in (0, NEVER):
            patch.setattr(ans, "_WORTH", worth)
            written.append(encode(model, symbols))
            assert np.array_equal(decode(model, written[-1], len(symbols)), symbols)
    assert written[0] == written[1]


def test_wide_symbols_need_more_bytes() -> None:
    symbols = np.array([-40000, 40000 - 40000])
    _, payload = round_trip(symbols)
    assert decode(CODER.fit(Run.of(symbols)), payload, 2).dtype == np.int32


@pytest.mark.parametrize("mantissa", range(5))
def test_levels_are_the_nearest_weights(mantissa: int) -> None:
    counts = np.array([0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 1000, 65535, 1 << 31])
    levels = ans._levels_of(counts, mantissa)
    weights = ans._weights_of(levels, mantissa)
    assert levels[0] == 0 == weights[0] and (levels[1:] >= 1).all() and (np.diff(levels) >= 0).all()
    exact = counts[1:] * 2.0**mantissa
    assert (np.abs(weights[1:] - exact) <= exact * 2.0 ** -(mantissa + 1)).all()
    assert (weights[1 : 2 << mantissa] == exact[: (2 << mantissa) - 1]).all() or mantissa > 2


def test_decoding_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, or an import of it is blocked; nothing is asked of it then."""
    symbols = laplace(1 << 17, 3)
    model = CODER.fit(Run.of(symbols))
    payload = encode(model, symbols)
    with monkeypatch.context() as blocked:
        blocked.setitem(sys.modules, "numba", None)
        blocked.delitem(sys.modules, "ilwp_plugin.format.coding.compiled", raising=False)
        fast._compiled.cache_clear()
        assert not fast.available(NEVER)
        assert np.array_equal(decode(model, payload, len(symbols)), symbols)
    fast._compiled.cache_clear()
    assert fast.available(NEVER)
