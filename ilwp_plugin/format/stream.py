"""Bytes written and read in the same words, each charged to the ledger as it passes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.spool import SpooledBytes
from ilwp_plugin.ledger import Account, Ledger

__all__ = ["Account", "ByteReader", "ByteWriter", "Later", "unzigzag", "zigzag"]

_VARINT_LIMIT = 1 << 63


def zigzag(value: int) -> int:
    """Signed to unsigned: 0, -1, 1, -2, ... to 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`."""
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


@dataclass
class Later:
    """An account that is known only after its bytes were read; see `ByteReader.charge_later`."""

    account: Account = ("header", None)


class _Charging:
    """The account (part and layer) to which passing bytes are charged."""

    def __init__(self, part: str, layer: str | None) -> None:
        self.ledger = Ledger()
        self._account: Account = (part, layer)

    @contextmanager
    def charge(self, part: str, layer: str | None) -> Iterator[None]:
        """Charge what passes inside the `with` block to this part and layer."""
        before, self._account = self._account, (part, layer)
        try:
            yield
        finally:
            self._account = before


class ByteWriter(_Charging):
    """Little-endian numbers, varints and raw bytes, appended; mirrored by `ByteReader`."""

    def __init__(self, part: str = "header", layer: str | None = None) -> None:
        super().__init__(part, layer)
        self._bytes = SpooledBytes()

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
        """Unsigned LEB128, at most 63 bits, in the fewest bytes."""
        if not 0 <= value < _VARINT_LIMIT:
            raise ValueError(f"not a varint: {value}")
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        self.raw(bytes(out))

    def __len__(self) -> int:
        return len(self._bytes)

    def getvalue(self) -> bytes:
        """All that was written, in memory."""
        return bytes(self.content())

    def content(self) -> memoryview:
        """All that was written, in a mapped file where it is much; nothing can be written afterwards."""
        return self._bytes.content()


class ByteReader(_Charging):
    """Reads what `ByteWriter` wrote; every read is checked against the end before anything is allocated."""

    def __init__(self, data: memoryview, where: str, part: str = "header", layer: str | None = None) -> None:
        super().__init__(part, layer)
        self.data = data
        self._position = 0
        self.where = where

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
        piece = self._advance(count)
        self.ledger.charge(*self._account, count)
        return piece

    @contextmanager
    def charge_later(self) -> Iterator[Later]:
        """For bytes that tell themselves to whom they belong: set the account anywhere inside the `with` block."""
        later, start = Later(), self._position
        before, self.ledger = self.ledger, Ledger()
        try:
            yield later
        finally:
            self.ledger = before
        self.ledger.charge(*later.account, self._position - start)

    def peek(self, count: int) -> memoryview:
        """The next bytes, not consumed."""
        return self.data[self._position : self._position + count]

    def shared(self, count: int) -> memoryview:
        """Bytes that several accounts share; the caller charges its ledger with them once they are decoded."""
        return self._advance(count)

    def u8(self) -> int:
        return self.raw(1)[0]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.raw(4))[0])

    def f32(self) -> float:
        return float(struct.unpack("<f", self.raw(4))[0])

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift > 56:
                raise self.fail("number-too-large", "a number of more than 63 bits")
        if byte == 0 and shift > 7:
            raise self.fail("number-not-shortest", "a number written in more bytes than it needs")
        return value

    def finish(self) -> None:
        """Raises FormatError if bytes are left."""
        if self.remaining:
            raise self.fail("too-long", f"{self.remaining} bytes too many")
