"""Sections of bytes in whichever of two ways takes fewer bytes: in groups, or under LZMA."""

import lzma
from typing import Any

import numpy as np
import pytest

from ilwp_plugin.format import FieldSection, FloatSection, GraphSection, RawSection, TensorInfo, pack, packing, read
from ilwp_plugin.format.sections import fields, floats
from ilwp_plugin.format.sections.codes import SMALLEST, Coding


def again(count: int) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of random numbers, of which the later ones repeat the first."""
    values = (50 * np.random.default_rng(0).standard_normal(300)).astype(np.float32)
    return {f"t{i}": values.copy() for i in range(count)}


def apart(count: int) -> dict[str, np.ndarray[Any, Any]]:
    """One that has few values, unevenly distributed, and no repetitions."""
    random = np.random.default_rng(0)
    return {f"t{i}": random.geometric(0.5, 3000).astype(np.float32) for i in range(count)}


def section_of(kind: str, values: dict[str, np.ndarray[Any, Any]], coding: Coding) -> Any:
    if kind == "floats":
        infos = [TensorInfo(name, "float32", value.shape, "coded") for name, value in values.items()]
        return FloatSection(infos, values, coding)
    whole = {name: np.clip(np.round(value), -127, 127).astype(np.int8) for name, value in values.items()}
    infos = [TensorInfo(name, "int8", value.shape, "coded") for name, value in whole.items()]
    return FieldSection(infos, whole, dict.fromkeys(whole, 8), coding)


def size(section: Any) -> int:
    return int(section.encode(section.infos).length)


@pytest.mark.parametrize("kind", ["floats", "fields"])
def test_what_comes_again_is_stored_once(kind: str) -> None:
    section = section_of(kind, again(20), SMALLEST)
    assert size(section) < 0.3 * size(section_of(kind, again(20), "auto"))
    content = b"".join(pack(section.infos, [section, RawSection([], {})]))
    file = read(content)
    for name, value in section.values.items():
        np.testing.assert_array_equal(file.tensor(name), value)
    assert b"".join(pack(file.infos, file.sections)) == content, "what was read is written as it was"


@pytest.mark.parametrize("kind", ["floats", "fields"])
def test_groups_stay_where_they_take_fewer_bytes(kind: str) -> None:
    assert size(section_of(kind, apart(3), SMALLEST)) == size(section_of(kind, apart(3), "auto"))


@pytest.mark.parametrize(("kind", "module"), [("floats", floats), ("fields", fields)])
def test_lzma_is_not_tried_where_it_would_take_long(kind: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packing.MOST_TRIED > 1 << 20
    monkeypatch.setattr(module, "MOST_TRIED", 1000)
    assert size(section_of(kind, again(20), SMALLEST)) == size(section_of(kind, again(20), "auto"))


def test_a_graph_is_packed_as_well_as_lzma_can() -> None:
    import lzma

    content = b"".join(b"<layer id='%d' name='conv%d'/>" % (i, i * i % 97) for i in range(3000))
    plain = lzma.compress(content, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    section = GraphSection("xml", content)
    assert section.content == content and section.encode([]).length < len(plain)


def test_of_all_efforts_the_smallest_stream_is_taken() -> None:
    """No effort is the best for all contents."""
    random = np.random.RandomState(0)
    contents = [
        bytes(random.randint(97, 101, 300_000, np.uint8)),  # of some parts, the first of which tells little
        random.randint(0, 4, 3000, np.int32).tobytes(),
        bytes(random.randint(0, 256, 500, np.uint8)),
        np.arange(900, dtype="<u4").tobytes(),
    ]
    efforts = [{}, *({"preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": pb} for pb in (0, 2))]
    best = set()
    for content in contents:
        filters = [[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20, **effort}] for effort in efforts]
        sizes = [len(lzma.compress(content, lzma.FORMAT_RAW, filters=own)) for own in filters]
        assert len(packing.packed(content)) == min(sizes)
        best.add(sizes.index(min(sizes)))
    assert len(best) > 1
