"""What is too large for memory, in unnamed temporary files that are mapped: the system writes it out when it has to."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spool", "SpooledBytes"]

_SEGMENT = 1 << 28
"""Bytes of a file, unless an array is larger: each takes a file descriptor as long as its arrays live."""

_SMALL = 1 << 16
"""Bytes of arrays that stay in memory."""

_MUCH = 1 << 26
"""Bytes from which on a writer goes on in a file."""


class Spool:
    """Takes arrays out of memory."""

    def __init__(self) -> None:
        self._segment: memoryview = memoryview(b"")

    def store(self, array: NDArray[Any]) -> NDArray[Any]:
        """The same values, read-only; where the disk has no room, as they are."""
        if array.nbytes < _SMALL:
            return array
        if len(self._segment) < array.nbytes:
            try:
                self._segment = _room(max(_SEGMENT, array.nbytes))
            except OSError:
                return array
        piece, self._segment = self._segment[: array.nbytes], self._segment[-(-array.nbytes // 64) * 64 :]
        stored = np.frombuffer(piece, array.dtype).reshape(array.shape)
        stored[...] = array
        stored.flags.writeable = False
        return stored


def _room(count: int) -> memoryview:
    """So many bytes of a file, which the disk has for certain: a page without room would end the process."""
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, count)
        else:
            for _ in range(0, count, 1 << 20):
                file.write(bytes(1 << 20))
            file.flush()
        return memoryview(mmap.mmap(file.fileno(), count))


class SpooledBytes:
    """Bytes that are appended, in a file where they are many; in memory where the disk has no room."""

    def __init__(self) -> None:
        self._memory = bytearray()
        self._file: Any = None
        self._written = 0
        self._room = True

    def __len__(self) -> int:
        return self._written + len(self._memory)

    def append(self, data: bytes | memoryview) -> None:
        """More bytes."""
        self._memory += data
        if len(self._memory) >= _MUCH and self._room:
            self._spill()

    def _spill(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed when its content is taken)
            self._file.write(self._memory)
            self._file.flush()
        except OSError:
            self._room = False
            if self._file is not None:
                self._file.seek(0)
                self._memory = bytearray(self._file.read(self._written)) + self._memory
                self._written = 0
                self._file.close()
                self._file = None
            return
        self._written += len(self._memory)
        self._memory = bytearray()

    def content(self) -> memoryview:
        """All of them; nothing can be appended afterwards."""
        if self._file is not None:
            self._spill()
        if self._file is None:
            return memoryview(self._memory).toreadonly()
        with self._file as file:
            return memoryview(mmap.mmap(file.fileno(), self._written, access=mmap.ACCESS_READ))
