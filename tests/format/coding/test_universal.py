"""The universal coder: round trips, against the textbook, and how near it is to the entropy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ilwp_plugin.format.coding import AUTO, CODERS, Run, Segment, fit_coder
from ilwp_plugin.format.coding.universal import LzmaCoder, Packing
from ilwp_plugin.format.grouping import group_runs
from ilwp_plugin.format.stream import ByteReader
from tests.format import textbook

CODER = LzmaCoder()


def there_and_back(symbols: NDArray[Any], packing: Packing) -> int:
    segments = [Segment.flat(len(symbols))]
    payload = CODER.encode(packing, symbols, segments)
    table = CODER.read_table(ByteReader(memoryview(CODER.table(packing)), "table"))
    assert table == packing
    decoded = CODER.decode(packing, memoryview(payload), segments, ByteReader(memoryview(payload), "payload"))
    assert decoded.tolist() == symbols.tolist() and decoded.dtype in (np.int16, np.int32)
    assert textbook.lzma_payload(packing.centre, packing.radix, payload, len(symbols)) == symbols.tolist()
    return len(payload)


@given(
    st.lists(st.integers(-(2**15), 2**15 - 1) | st.integers(-3, 3), min_size=1, max_size=60),
    st.integers(2, 256),
    st.integers(-50, 50),
)
def test_round_trips(symbols: list[int], radix: int, centre: int) -> None:
    there_and_back(np.array(symbols, np.int64), Packing(centre, radix))


@pytest.mark.parametrize("radix", [2, 3, 4, 5, 6, 7, 15, 16, 17, 255, 256])
def test_digits_of_a_byte(radix: int) -> None:
    width = Packing(0, radix).width
    assert radix**width <= 256 < radix ** (width + 1)


@pytest.mark.parametrize(("scale", "zeros", "most"), [(1.0, 0.0, 1.04), (0.6, 0.3, 1.05), (0.5, 0.6, 1.08)])
def test_near_the_entropy(scale: float, zeros: float, most: float) -> None:
    random = np.random.RandomState(0)
    symbols = np.rint(random.laplace(size=100_000) * scale).astype(np.int16)
    symbols[random.random_sample(len(symbols)) < zeros] = 0
    run = Run.of(symbols)
    packing = CODER.fit(run)
    size = there_and_back(symbols, packing)
    assert run.histogram.entropy * len(symbols) / 8 <= size <= most * run.histogram.entropy * len(symbols) / 8
    assert CODER.payload_bytes(packing, run) == size


def test_it_learns_what_a_table_could_not_tell() -> None:
    """Symbols that repeat themselves are coded below their entropy."""
    random = np.random.RandomState(0)
    symbols = np.tile(random.randint(-8, 8, 1000), 20).astype(np.int16)
    run = Run.of(symbols)
    assert fit_coder(run, "lzma").nbytes < 0.1 * fit_coder(run, AUTO).nbytes


def test_it_has_to_be_asked_for() -> None:
    runs = [Run.of(np.arange(-5, 5, dtype=np.int16)), *[Run.of(np.full(40, i, np.int16)) for i in range(3)]]
    assert group_runs(runs, "lzma") == [4]
    assert fit_coder(runs[0], AUTO).coder is not CODERS["lzma"]


def test_many_rests() -> None:
    """More than are unpacked at one time."""
    symbols = np.random.RandomState(0).randint(-(2**15), 2**15, 70_000)
    there_and_back(symbols, Packing(0, 2))
