"""Bytes written and read in the same words, each charged to the ledger as it passes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.spool import SpooledBytes
from ilwp_plugin.ledger import Account, Ledger

__all__ = ["Account", "ByteReader", "ByteWriter", "Later", "unzigzag", "varint", "zigzag"]

_VARINT_LIMIT = 1 << 63


def zigzag(value: int) -> int:
    """Signed to unsigned: 0, -1, 1, -2, ... to 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`."""
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


def varint(value: int) -> bytes:
    """Unsigned LEB128, at most 63 bits, in the fewest bytes. Raises ValueError beyond these."""
    if not 0 <= value < _VARINT_LIMIT:
        raise ValueError(f"not a varint: {value}")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass
class Later:
    """An account that is known only after its bytes were read; see `ByteReader.charge_later`."""

    account: Account = ("header", None)


class ByteWriter:
    """Little-endian numbers, varints and raw bytes, appended; mirrored by `ByteReader`."""

    def __init__(self, part: str = "header", layer: str | None = None) -> None:
        self.ledger = Ledger()
        self._account: Account = (part, layer)
        self._bytes = SpooledBytes()

    @contextmanager
    def charge(self, part: str, layer: str | None) -> Iterator[None]:
        """Charge what is written inside the `with` block to this part and layer."""
        before, self._account = self._account, (part, layer)
        try:
            yield
        finally:
            self._account = before

    def raw(self, data: bytes | memoryview) -> None:
        self._bytes.append(data)
        self.ledger.charge(*self._account, len(data))

    def shared(self, data: bytes, accounts: Sequence[Account], shares: Sequence[int]) -> None:
        """Bytes that several accounts share, each charged with its share (see `ledger.split_bits`)."""
        for (part, layer), share in zip(accounts, shares, strict=True):
            self.ledger.charge(part, layer, share)
        self._bytes.append(data)

    def u8(self, value: int) -> None:
        self.raw(struct.pack("<B", value))

    def u32(self, value: int) -> None:
        self.raw(struct.pack("<I", value))

    def f32(self, value: float) -> None:
        self.raw(struct.pack("<f", value))

    def varint(self, value: int) -> None:
        """See `varint`."""
        self.raw(varint(value))

    def __len__(self) -> int:
        return len(self._bytes)

    def getvalue(self) -> bytes:
        """All that was written, in memory."""
        return bytes(self.content())

    def content(self) -> memoryview:
        """All that was written, in a mapped file where it is much; nothing can be written afterwards."""
        return self._bytes.content()


class ByteReader:
    """Reads what `ByteWriter` wrote; every read is checked against the end before anything is allocated.

    Bytes that follow each other on one account are charged together, once the account changes or the ledger is looked
    at: most reads are of a byte.
    """

    def __init__(self, data: memoryview, where: str, part: str = "header", layer: str | None = None) -> None:
        self.data = data
        self.where = where
        self._position = self._charged = 0
        self._ledger = Ledger()
        self._account: Account = (part, layer)

    @property
    def ledger(self) -> Ledger:
        """The charge for each byte that was read."""
        self._settle()
        return self._ledger

    def _settle(self) -> None:
        self._ledger.charge(*self._account, self._position - self._charged)
        self._charged = self._position

    @contextmanager
    def charge(self, part: str, layer: str | None) -> Iterator[None]:
        """Charge what is read inside the `with` block to this part and layer."""
        self._settle()
        before, self._account = self._account, (part, layer)
        try:
            yield
        finally:
            self._settle()
            self._account = before

    def fail(self, code: str, what: str) -> FormatError:
        """A FormatError that says where the reader stands, to be raised by the caller; `code` is one of `FAULTS`."""
        return FormatError(f"{self.where}, byte {self._position}: {what}", code)

    @property
    def remaining(self) -> int:
        return len(self.data) - self._position

    @property
    def position(self) -> int:
        return self._position

    def _advance(self, count: int) -> memoryview:
        if count > self.remaining:
            raise self.fail("too-short", f"needs {count} bytes, {self.remaining} are left")
        piece = self.data[self._position : self._position + count]
        self._position += count
        return piece

    def raw(self, count: int) -> memoryview:
        return self._advance(count)

    @contextmanager
    def charge_later(self) -> Iterator[Later]:
        """For bytes that tell themselves to whom they belong: set the account anywhere inside the `with` block."""
        self._settle()
        later, start = Later(), self._position
        before, self._ledger = self._ledger, Ledger()
        try:
            yield later
        finally:
            self._ledger, self._charged = before, self._position
        self._ledger.charge(*later.account, self._position - start)

    def peek(self, count: int) -> memoryview:
        """The next bytes, not consumed."""
        return self.data[self._position : self._position + count]

    def shared(self, count: int) -> memoryview:
        """Bytes that several accounts share; the caller charges its ledger with them once they are decoded."""
        self._settle()
        piece = self._advance(count)
        self._charged = self._position
        return piece

    def u8(self) -> int:
        at = self._position
        if at >= len(self.data):
            raise self.fail("too-short", "needs 1 bytes, 0 are left")
        self._position = at + 1
        return self.data[at]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.raw(4))[0])

    def f32(self) -> float:
        return float(struct.unpack("<f", self.raw(4))[0])

    def varint(self) -> int:
        byte = self.u8()
        if byte < 0x80:
            return byte
        value, shift = byte & 0x7F, 7
        while byte >= 0x80:
            if shift > 56:
                raise self.fail("number-too-large", "a number of more than 63 bits")
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            shift += 7
        if byte == 0:
            raise self.fail("number-not-shortest", "a number written in more bytes than it needs")
        return value

    def finish(self) -> None:
        """Raises FormatError if bytes are left."""
        if self.remaining:
            raise self.fail("too-long", f"{self.remaining} bytes too many")
