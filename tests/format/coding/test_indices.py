import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.coding import read_indices, write_indices
from ilwp_plugin.format.stream import ByteReader, ByteWriter


def written(indices: list[int], alphabet: int) -> bytes:
    writer = ByteWriter()
    write_indices(writer, np.array(indices, dtype=np.int64), alphabet)
    return writer.getvalue()


@given(st.integers(1, 70000), st.data())
def test_round_trip(alphabet: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, alphabet - 1), min_size=1, max_size=200))
    reader = ByteReader(memoryview(written(indices, alphabet)), "test")
    assert read_indices(reader, len(indices), alphabet).tolist() == indices
    reader.finish()


def test_the_smaller_coding_is_used() -> None:
    uniform = list(range(256))
    assert len(written(uniform, 256)) == 1 + 256  # eight bits each, and the byte that says so
    skewed = [3] * 2000 + [100]
    assert len(written(skewed, 256)) < 1 + 300  # one bit each and a small table
    assert len(written([0] * 50, 1)) == 1  # nothing to choose, nothing to store


@pytest.mark.parametrize(
    ("data", "count", "alphabet", "message"),
    [
        (b"\x07", 1, 2, "unknown coding 7"),
        (b"\x00\xff", 2, 11, "indices from 15 to 15, expected 0 to 10"),
        (b"\x00\x01", 1, 2, "padding is not zero"),
        (b"\x00", 1, 2, "needs 1 bytes"),
    ],
)
def test_bad_data_is_refused(data: bytes, count: int, alphabet: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_indices(ByteReader(memoryview(data), "test"), count, alphabet)
