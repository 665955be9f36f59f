import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.faults import FAULTS
from ilwp_plugin.format.stream import ByteReader, ByteWriter, unzigzag, zigzag
from ilwp_plugin.ledger import Ledger


def reader(data: bytes) -> ByteReader:
    return ByteReader(memoryview(data), "test")


@given(st.lists(st.integers(0, (1 << 63) - 1), max_size=20), st.floats(width=32, allow_nan=False), st.binary())
def test_round_trip(numbers: list[int], real: float, data: bytes) -> None:
    writer = ByteWriter()
    for number in numbers:
        writer.varint(number)
    writer.f32(real)
    writer.u8(7)
    writer.u32(1 << 31)
    writer.raw(data)
    r = reader(writer.getvalue())
    assert [r.varint() for _ in numbers] == numbers
    assert (r.f32(), r.u8(), r.u32(), bytes(r.raw(len(data)))) == (real, 7, 1 << 31, data)
    r.finish()
    assert r.ledger == writer.ledger and writer.ledger.header_bytes == len(writer)


@given(st.integers(-(1 << 40), 1 << 40))
def test_zigzag(value: int) -> None:
    assert unzigzag(zigzag(value)) == value and zigzag(value) >= 0


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"", "too-short", "needs 1 bytes, 0 are left"),
        (b"\x80", "too-short", "needs 1 bytes"),
        (b"\x80\x00", "number-not-shortest", "more bytes than it needs"),
        (b"\xff" * 9 + b"\x01", "number-too-large", "more than 63 bits"),
    ],
)
def test_bad_varints(data: bytes, code: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        reader(data).varint()
    assert caught.value.code == code and code in FAULTS


def test_largest_varint() -> None:
    writer = ByteWriter()
    writer.varint((1 << 63) - 1)
    assert len(writer) == 9 and reader(writer.getvalue()).varint() == (1 << 63) - 1


def test_varint_bounds() -> None:
    with pytest.raises(ValueError, match="not a varint"):
        ByteWriter().varint(1 << 63)
    with pytest.raises(ValueError, match="not a varint"):
        ByteWriter().varint(-1)


def test_charges() -> None:
    writer = ByteWriter()
    with writer.charge("texture", "a"):
        writer.raw(b"xyz")
        with writer.charge("anchor", "b"):
            writer.raw(b"12")
        writer.u8(0)
    writer.shared(b"abcd", [("texture", "a"), ("anchor", "c")], [1, 3])
    expected = Ledger()
    for part, layer, count in (("texture", "a", 5), ("anchor", "b", 2), ("anchor", "c", 3)):
        expected.charge(part, layer, count)  # type: ignore[arg-type]
    assert writer.ledger == expected


def test_leftover_bytes_are_an_error() -> None:
    with pytest.raises(FormatError, match="test, byte 0: 2 bytes too many") as caught:
        reader(b"ab").finish()
    assert caught.value.code == "too-long"


def test_bytes_that_tell_later_to_whom_they_belong() -> None:
    r = reader(b"abcd")
    with r.charge_later() as entry:
        assert bytes(r.raw(3)) == b"abc"
        entry.account = ("anchor", "x")
    assert r.ledger.anchor_bytes == 3 and r.position == 3 and r.remaining == 1 and bytes(r.peek(9)) == b"d"
