from hypothesis import given
from hypothesis import strategies as st

from ilwp_plugin.ledger import PARTS, LayerBytes, Ledger, split_bits


def test_parts_sum_to_the_file() -> None:
    ledger = Ledger()
    for size, part in enumerate(PARTS, start=1):
        ledger.charge(part, "a" if size % 2 else None, size)
    assert ledger.file_bytes == 36
    assert ledger.total_bytes == 1 + 2 + 3 + 4 + 5
    assert ledger.layers["a"] == LayerBytes(texture_bytes=1, table_bytes=3, header_bytes=5, batch_norm_bytes=7)
    assert ledger.to_dict()["layers"]["a"]["total_bytes"] == 9


def test_equality_ignores_empty_charges() -> None:
    one, other = Ledger(), Ledger()
    one.charge("texture", "a", 3)
    one.charge("texture", "b", 0)
    other.charge("texture", "a", 1)
    more = Ledger()
    more.charge("texture", "a", 2)
    other.extend(more)
    assert one == other


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20))
def test_shares_of_a_bitstream_sum_to_its_bytes(bits: list[int]) -> None:
    total = (sum(bits) + 7) // 8
    shares = split_bits(bits, total)
    assert sum(shares) == total and min(shares) >= 0
    assert all(abs(share - length / 8) < 2 for share, length in zip(shares, bits, strict=True))
