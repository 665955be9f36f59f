"""What must hold of any bytes, whoever made them."""

from __future__ import annotations

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format import IlwpFile, pack, read
from ilwp_plugin.format.faults import FAULTS
from tests.format import textbook

MOST = 1 << 20
"""Bytes that restored tensors may have: what counts is how they are read, not how many they are."""

_SLOW = 1300
"""Bytes of files that the second reader is asked about."""

Values = dict[str, bytes]


def check(data: bytes) -> str:
    """Read a file in every way there is. Raises AssertionError, or what the reader should not raise.

    What takes long is done for a part of all files, which their last byte, a byte of a checksum, draws.

    Returns:
        The code of its fault, or "read".
    """
    drawn = data[-1] if data else 0
    code, values = _eager(data)
    if drawn % 8 == 0:
        lazy, found = _lazy(data)
        if code == "file-checksum":  # it is verification that looks at this
            assert lazy in ("read", *FAULTS)
        else:
            assert lazy == "read" if code == "read" else lazy != "read", (code, lazy)
            assert found == values
    if drawn % 64 == 1 and len(data) < _SLOW and code != "limit":
        assert _second(data) == (None if code != "read" else values)
    return code


def _eager(data: bytes) -> tuple[str, Values | None]:
    try:
        file = read(data, max_bytes=MOST)
        state = file.state(as_bits=True)
    except FormatError as error:
        assert error.code in FAULTS, error.code
        return error.code, None
    for info in file.infos:
        assert state[info.name].shape == info.shape and state[info.name].nbytes == info.nbytes, info
    assert file.ledger.file_bytes == len(data), "the ledger counts every byte"
    values = {name: value.tobytes() for name, value in state.items()}
    if data[-1] % 8 == 1:
        _again(file, values)
    return "read", values


def _again(file: IlwpFile, values: Values) -> None:
    """What was read can be written, to the same tensors; and that is read and written to the same bytes."""
    data = b"".join(pack(file.infos, file.sections))
    written = read(data, max_bytes=MOST)
    assert {name: value.tobytes() for name, value in written.state(as_bits=True).items()} == values
    assert b"".join(pack(written.infos, written.sections)) == data


def _lazy(data: bytes) -> tuple[str, Values | None]:
    """One tensor after the other, the last one first."""
    try:
        file = read(data, max_bytes=MOST, verify=False)
        values = {info.name: file.tensor(info.name, as_bits=True).tobytes() for info in reversed(file.infos)}
        for section in file.sections:
            section.check()
            section.summaries()
    except FormatError as error:
        assert error.code in FAULTS, error.code
        return error.code, None
    return "read", values


def _second(data: bytes) -> Values | None:
    """What the reader that was written from FORMAT.md alone makes of it."""
    try:
        return {name: values for name, (_, _, values) in textbook.read(data).items()}
    except textbook.Fault:
        return None
