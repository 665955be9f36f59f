"""ANS against a textbook coder in whole numbers, and against the entropy of what it codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ilwp_plugin.stream import ByteReader

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.coding import CODERS, AnsCoder, AnsModel, Histogram, fast, fit_coder
from ilwp_plugin.format.coding.ans import PRECISION, SYMBOLS_PER_BYTE

CODER = AnsCoder()


def laplace(count: int, scale: float, seed: int = 0) -> np.ndarray:
    return np.round(np.random.default_rng(seed).laplace(0, scale, count)).astype(np.int64)


def reader(data: bytes) -> ByteReader:
    return ByteReader(memoryview(data), "test")


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
    model = CODER.fit(Histogram.of(symbols))
    read = CODER.read_table(reader(CODER.table(model)))
    assert (read.low, read.probabilities.tolist()) == (model.low, model.probabilities.tolist())
    payload = CODER.encode(model, symbols)
    assert np.array_equal(CODER.decode(read, memoryview(payload), len(symbols), reader(payload)), symbols)
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
    fit = fit_coder(Histogram.of(symbols), "auto")
    assert fit.coder is CODERS["ans"] and fit.nbytes < 0.2 * len(symbols) / 8


def test_small_sections_are_huffman_coded_where_that_is_smaller() -> None:
    fits = {
        name: fit_coder(Histogram.of(np.array([0, 1, 2, 3] * 4)), name).nbytes for name in ("huffman", "ans", "auto")
    }
    assert fits["auto"] == min(fits["huffman"], fits["ans"])


def test_a_count_is_bounded_by_its_payload() -> None:
    zeros = np.zeros(1_000_000, dtype=np.int64)
    _, payload = round_trip(zeros)
    assert len(zeros) < SYMBOLS_PER_BYTE * len(payload)
    model = CODER.fit(Histogram.of(zeros))
    with pytest.raises(FormatError, match="cannot fit"):
        CODER.decode(model, memoryview(payload), 1 << 40, reader(payload))


def test_a_changed_bit_is_never_overlooked() -> None:
    """A stream is refused or decodes to something else; most changes leave a state that no encoder begins with."""
    symbols = laplace(300, 2)
    model, payload = round_trip(symbols)
    refused = 0
    for bit in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            decoded = CODER.decode(model, memoryview(bytes(changed)), len(symbols), reader(bytes(changed)))
        except FormatError:
            refused += 1
        else:
            assert not np.array_equal(decoded, symbols)
    assert refused > 0.98 * 8 * len(payload)


@pytest.mark.parametrize("count", [1 << 16, (1 << 16) + 1, (1 << 16) + 2, (1 << 16) + 3, 300_000])
def test_compiled_decoder_reads_the_same(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = laplace(count, 3, count)
    model = CODER.fit(Histogram.of(symbols))
    payload = CODER.encode(model, symbols)
    for compiled in (False, True):
        monkeypatch.setattr(fast, "available", lambda _, compiled=compiled: compiled)
        assert np.array_equal(CODER.decode(model, memoryview(payload), count, reader(payload)), symbols)
    broken = payload[:-1] + bytes([payload[-1] ^ 1])
    with pytest.raises(FormatError, match="do not hold"):
        CODER.decode(model, memoryview(broken), count, reader(broken))
