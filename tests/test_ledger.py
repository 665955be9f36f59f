import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ilwp_plugin.format  # noqa: F401  its sections register their parts
from ilwp_plugin.errors import RegistryError
from ilwp_plugin.ledger import PARTS, LayerBytes, Ledger, register_part, split_bits

OURS = ["texture", "non_texture", "table", "anchor", "header", "grid", "batch_norm", "other"]


def test_parts_are_named_by_those_who_charge_them() -> None:
    assert set(OURS) <= set(PARTS)
    part = PARTS["grid"]
    assert register_part(part.name, part.description) == "grid"
    with pytest.raises(RegistryError, match="part 'grid' is registered already"):
        register_part("grid", "something else")
    with pytest.raises(AttributeError, match="no size is called 'green_bytes'"):
        Ledger().green_bytes  # noqa: B018
    assert set(Ledger().to_dict()) == {f"{part}_bytes" for part in [*PARTS, "total", "file"]} | {"layers"}


def test_a_ledger_can_be_copied() -> None:
    ledger = Ledger()
    ledger.charge("texture", "a", 3)
    assert copy.deepcopy(ledger) == ledger == pickle.loads(pickle.dumps(ledger))  # noqa: S301
    assert copy.deepcopy(ledger.whole) == ledger.whole


def test_parts_sum_to_the_file() -> None:
    ledger = Ledger()
    for size, part in enumerate(OURS, start=1):
        ledger.charge(part, "a" if size % 2 else None, size)
    assert ledger.file_bytes == 36
    assert ledger.total_bytes == 1 + 2 + 3 + 4 + 5
    assert ledger.layers["a"] == LayerBytes(texture_bytes=1, table_bytes=3, header_bytes=5, batch_norm_bytes=7)
    assert ledger.to_dict()["layers"]["a"]["total_bytes"] == 9


def test_equal_bytes_are_one_key() -> None:
    ones = [LayerBytes(texture_bytes=1, table_bytes=3), LayerBytes(table_bytes=3, texture_bytes=1)]
    assert len({*ones, LayerBytes(texture_bytes=1)}) == 2


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
