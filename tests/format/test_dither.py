"""The dither against the textbook's, written from the page alone, and against what uniform numbers are like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilwp_plugin.format import dither
from tests.format import textbook


def test_splitmix64_itself() -> None:
    """The first outputs for the seed 1234567, as its authors' C code and Java's SplittableRandom give them."""
    from ilwp_plugin.format.dither import _GOLDEN, _mixed

    places = np.arange(1, 4, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(1234567)
    assert _mixed(places).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_against_the_textbook(seed: int, stream: int, start: int) -> None:
    own = dither(seed, stream, start, 3)
    assert own.dtype == np.float32
    assert own.tolist() == [float(textbook.dither(seed, stream, start + i)) for i in range(3)]


@pytest.mark.parametrize("stream", [0, 1, 5])
def test_what_it_is_like(stream: int) -> None:
    drawn = dither(3, stream, 0, 100_000)
    assert drawn.min() >= -0.5 and drawn.max() < 0.5
    assert np.array_equal(drawn * np.float32(2**24), np.rint(drawn * np.float32(2**24)))
    counts = np.histogram(drawn, 50, (-0.5, 0.5))[0]
    assert np.abs(counts - 2000).max() < 5 * 2000**0.5
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(drawn[lag:], drawn[:-lag])[0, 1]) < 0.015
    assert abs(np.corrcoef(drawn, dither(3, stream + 1, 0, 100_000))[0, 1]) < 0.015
    assert np.array_equal(drawn[500:700], dither(3, stream, 500, 200))
