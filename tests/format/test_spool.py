"""Arrays and bytes in temporary files instead of memory."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest

from ilwp_plugin.format import spool
from ilwp_plugin.format.spool import Spool, SpooledBytes


def _mapped(array: np.ndarray[Any, Any]) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, memoryview) and not isinstance(base.obj, (bytes, bytearray))


def test_arrays_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_SEGMENT", 1 << 20)
    monkeypatch.setattr(spool, "_SMALL", 100)
    place, rng = Spool(), np.random.default_rng(0)
    arrays = [rng.integers(-99, 99, shape).astype(np.int16) for shape in ((3, 5), (700, 300), (1 << 21,), (9, 7, 11))]
    stored = [place.store(array) for array in arrays]
    for array, copy in zip(arrays, stored, strict=True):
        assert np.array_equal(array, copy) and copy.dtype == array.dtype
    assert stored[0] is arrays[0]  # too small to be worth it
    assert all(_mapped(copy) and not copy.flags.writeable for copy in stored[1:])


def test_a_disk_without_room_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    array = np.ones(1 << 20, np.int16)
    assert Spool().store(array) is array
    monkeypatch.setattr(spool, "_MUCH", 10)
    written = SpooledBytes()
    for _ in range(3):
        written.append(bytes(range(9)))
    assert bytes(written.content()) == 3 * bytes(range(9)) and len(written) == 27


@pytest.mark.parametrize("much", [1, 10, 1000])
def test_bytes_come_back_as_they_were(much: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_MUCH", much)
    written, expected = SpooledBytes(), b""
    for length in (0, 1, 9, 3, 40, 0, 2):
        piece = bytes(range(length))
        written.append(piece)
        expected += piece
        assert len(written) == len(expected)
    content = written.content()
    assert bytes(content) == expected and content.readonly


def test_a_disk_that_fills_up_halfway_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A file that takes 20 bytes."""

        def __init__(self) -> None:
            self.data, self.closed = b"", False

        def write(self, data: bytes) -> None:
            if len(self.data) + len(data) > 20:
                raise OSError(28, "No space left on device")
            self.data += data

        def flush(self) -> None:
            pass

        def seek(self, position: int) -> None:
            assert position == 0

        def read(self, count: int) -> bytes:
            return self.data[:count]

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(spool, "_MUCH", 8)
    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    written = SpooledBytes()
    for number in range(6):
        written.append(bytes([number]) * 9)
    assert bytes(written.content()) == b"".join(bytes([number]) * 9 for number in range(6))


def test_without_room_nothing_is_written_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_MUCH", 4)
    written = SpooledBytes()
    written.append(b"abcd")
    written.append(b"ef")
    first = written.content()
    assert bytes(first) == b"abcdef"
