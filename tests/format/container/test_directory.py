"""Names, shapes and the frame, at their limits."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilwp_plugin.errors import FormatError, LimitError, TensorError
from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.container import (
    SectionBytes,
    TensorInfo,
    check_name,
    check_tensor,
    measure,
    pack,
    read_archive,
)
from ilwp_plugin.format.container.directory import directory_entries, read_directory
from ilwp_plugin.format.dtypes import DTYPES
from ilwp_plugin.format.stream import ByteReader, varint
from ilwp_plugin.ledger import Ledger
from tests.corpus import forge


def round_trip(infos: list[TensorInfo]) -> int:
    """Plain, and in a file, where it may be packed; bytes of the plain one."""
    entries = directory_entries(infos)
    content = b"".join([varint(len(infos)), *entries])
    reader = ByteReader(memoryview(content), "test")
    read, sizes = read_directory(reader, Budget(1 << 20, "test"))
    reader.finish()
    assert list(read) == infos and sizes == [len(entry) for entry in entries]
    data = b"".join(pack(infos, []))
    archive = read_archive(memoryview(data), "test", Budget(len(data), "test"))
    assert list(archive.tensors) == infos and len(data) <= 34 + len(content)
    ledger = measure(infos, [])
    assert ledger.file_bytes == len(data)
    layers = {name: sizes.file_bytes for name, sizes in ledger.layers.items()}
    assert [layers.get(info.name, 0) for info in infos] == archive.entry_bytes
    return len(content)


COMPONENT = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="."), min_size=1, max_size=5)


@given(st.data())
def test_any_directory(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.lists(COMPONENT, min_size=1, max_size=4).map(".".join), unique=True, max_size=12))
    infos: list[TensorInfo] = []
    for i, name in enumerate(names):
        targets = [j for j, info in enumerate(infos) if info.storage != "alias"]
        if targets and data.draw(st.booleans()):
            j = data.draw(st.sampled_from(targets))
            infos.append(TensorInfo(name, infos[j].dtype, infos[j].shape, "alias", j))
            continue
        shape = tuple(data.draw(st.lists(st.integers(0, 1 << 12), max_size=4)))
        dtype = data.draw(st.sampled_from(list(DTYPES)))
        infos.append(TensorInfo(name, dtype, shape, data.draw(st.sampled_from(["raw", "coded"]))))
        assert i < 12
    round_trip(infos)


def test_sizes() -> None:
    first = TensorInfo("a", "bfloat16", (3, 0, 5), "raw")
    assert (first.numel, first.nbytes) == (0, 0) and TensorInfo("a", "complex128", (), "raw").nbytes == 16
    assert TensorInfo("a", "float32", (1 << 40, 1 << 40), "raw").numel == 1 << 80


def test_repeated_names_and_shapes_are_cheap() -> None:
    blocks = [TensorInfo(f"layers.{i}.weight", "float32", (8, 8), "coded") for i in range(100)]
    assert round_trip(blocks) < 100 * 9


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("x" * 1024, None),
        ("ü" * 512, None),
        ("x" * 1025, "has 1025 bytes"),
        ("ü" * 513, "has 1026 bytes"),
        ("", "has 0 bytes"),
        ("a..b", "empty component"),
        (".a", "empty component"),
        ("a.", "empty component"),
        ("a\nb", "control character"),
        ("a\x7f", "control character"),
        ("a\x9f", "control character"),
        ("a\xa0b/.c\\", None),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_names(name: str, fault: str | None) -> None:
    found = check_name(name)
    assert found is None if fault is None else found is not None and fault in found
    if fault is None:
        round_trip([TensorInfo(name, "int8", (1,), "raw")])


def test_names_of_the_largest_length_in_many_components() -> None:
    round_trip(
        [TensorInfo(".".join("x" * 512), "int8", (), "raw"), TensorInfo(".".join("x" * 511 + "y"), "int8", (), "raw")]
    )


def test_shapes() -> None:
    check_tensor("a", "float32", (1 << 62, 0))
    check_tensor("a", "float32", (1,) * 64)
    round_trip([TensorInfo("a", "float32", (1 << 62,), "raw"), TensorInfo("b", "float32", (1,) * 64, "raw")])
    round_trip([TensorInfo("a", "float32", (1 << 31, 0, 1 << 31), "raw")])
    for shape in ((1 << 62, 2), (1,) * 65, (0, 1 << 61, 1 << 61)):
        with pytest.raises(TensorError, match="which a .ilwp file cannot hold"):
            check_tensor("a", "float32", shape)
    with pytest.raises(TensorError, match="has dtype quint8, which a .ilwp file cannot hold; expected one of float32,"):
        check_tensor("a", "quint8", (1,))


def section(length: int, number: int = 63, ancillary: bool = True) -> SectionBytes:
    ledger = Ledger()
    ledger.charge("other", None, length)
    return SectionBytes(number, ancillary, [bytes(length // 2), memoryview(bytes(length - length // 2))], ledger)


@pytest.mark.parametrize("lengths", [[], [0], [1, 2], [(1 << 18) - 1, 5], [1 << 18], [3, 1 << 18, 1 << 18, 7]])
def test_frame(lengths: list[int]) -> None:
    sections = [section(length) for length in lengths]
    data = b"".join(pack([], sections))
    archive = read_archive(memoryview(data), "test", Budget(len(data), "test"))
    assert [entry.length for entry in archive.sections] == lengths
    for entry in archive.sections:
        assert entry.offset % 64 == 0 or entry.length < 1 << 18
    assert measure([], sections).file_bytes == len(data) and archive.digest == data[-16:].hex()
    assert archive.ledger.file_bytes + sum(e.header_bytes + e.length for e in archive.sections) == len(data)


def test_a_header_of_the_largest_size_is_not_read_beyond_the_file() -> None:
    data = bytearray(forge.good().build())
    for length, code in (
        (1 << 28, "header-too-large"),
        ((1 << 28) + 1, "header-too-large"),
        (len(data) - 33, "header-checksum"),
    ):
        struct.pack_into("<I", data, 9, length)
        with pytest.raises(FormatError) as caught:
            read_archive(memoryview(bytes(data)), "test", Budget(0, "test"))
        assert caught.value.code == code


def test_big_endian_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(FormatError, match="big-endian") as caught:
        read_archive(memoryview(forge.good().build()), "test", Budget(0, "test"))
    assert caught.value.code == "platform"


def test_budget() -> None:
    """64 times the file and 64 MiB; or what the caller gives and 16 MiB; half of it for what could be found again."""
    assert Budget(1000, "x").limit == 64_000 + (64 << 20) and Budget(1000, "x", 5).limit == 5 + (16 << 20)
    budget = Budget(0, "x")
    budget.hold(30 << 20, "this")
    budget.borrow(34 << 20, "that")
    with pytest.raises(
        LimitError, match="x: that takes 67,108,865 bytes besides the restored tensors, the limit is 67,1"
    ):
        budget.borrow((34 << 20) + 1, "that")
    assert budget.keep(2 << 20) and not budget.keep(1)
    with pytest.raises(LimitError, match="other things"):
        budget.hold((32 << 20) + 1, "other things")
    budget.hold(32 << 20, "the rest")
