"""Integer tensors in fields of a few bits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ilwp_plugin.format import FieldSection, RawSection, TensorInfo, measure, pack, read


@given(st.data())
def test_every_integer_survives_fields_of_any_width(data: st.DataObject) -> None:
    infos, values, bits = [], {}, {}
    for i in range(data.draw(st.integers(1, 3))):
        dtype = data.draw(st.sampled_from(["uint8", "int8", "int16", "int32", "int64"]))
        shape = data.draw(arrays.array_shapes(max_dims=3, max_side=5))
        values[f"t{i}"] = data.draw(arrays.arrays(np.dtype(dtype), shape))
        infos.append(TensorInfo(f"t{i}", dtype, shape, "coded"))
        bits[f"t{i}"] = data.draw(st.integers(1, 8))
    section = FieldSection(infos, values, bits)
    file = read(b"".join(pack(infos, [section, RawSection([], {})])))
    assert all(np.array_equal(file.tensor(name), value) for name, value in values.items())
    decoded = next(section for section in file.sections if isinstance(section, FieldSection))
    assert decoded.bits == bits and file.ledger == measure(infos, [section, RawSection([], {})])


def test_a_part_of_a_section() -> None:
    infos = [TensorInfo(name, "int8", (3,), "coded") for name in "qr"]
    section = FieldSection(infos, {name: np.arange(3, dtype=np.int8) for name in "qr"}, {"q": 4, "r": 2})
    part = section.without({"q"})
    assert part is not None and list(part.names) == ["r"] and section.without({"q", "r"}) is None
