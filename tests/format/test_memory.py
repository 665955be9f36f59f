"""What reading takes, of every kind of section, from files that claim as much as they can."""

import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ilwp_plugin.errors import FormatError, LimitError
from ilwp_plugin.format import SECTIONS, ChainSection, RawSection, read
from ilwp_plugin.format.coding import AnsCoder, Run, Segment
from ilwp_plugin.format.stream import ByteReader
from tests.corpus import forge
from tests.format.measuring import read_in_a_child

TOKENS = [forge.token("t"), forge.token("weight")]
MIB = 1 << 20


def zeros(count: int, layers: int = 1) -> forge.Group:
    """As many codes as can be had for the bytes: all 0, in ANS."""
    coder = AnsCoder()
    model = coder.fit(Run.of(np.zeros(1 << 17, np.int16)))
    return forge.Group(
        layers, 2, coder.table(model), coder.encode(model, np.zeros(count, np.int8), [Segment.flat(count)])
    )


def single_bits(count: int, layers: int = 1) -> forge.Group:
    """Huffman codes of a bit each."""
    return forge.Group(layers, 1, forge.table(0, [1]), bytes((count + 7) // 8))


def one_tensor(kind: int, head: bytes, body: bytes, shape: list[int], dtype: int = forge.F32) -> forge.File:
    file = forge.good()
    file.tensors = [forge.entry(TOKENS, forge._CODED | dtype, shape)]
    file.sections = [(kind, forge.varint(1) + forge.varint(0) + head + body)]
    return file


def grid(count: int = 1 << 25) -> forge.File:
    return one_tensor(forge.GRID, b"\0" + struct.pack("<f", 0.5), zeros(count).build(), [count])


def grid_with_axis(count: int = 1 << 25) -> forge.File:
    scales = struct.pack("<2f", 1, 2) + forge.varint(0) * 2
    return one_tensor(forge.GRID, b"\3" + forge.varint(0) + scales, zeros(count).build(), [2, count // 2], 1)


def grid_predicted(count: int = 1 << 24) -> forge.File:
    """Each tensor predicted by the one before."""
    file = forge.good()
    shape = [count // 4, 1, 2, 2]
    file.tensors = [forge.entry(TOKENS, forge._CODED | forge.F32, shape)]
    file.tensors.append(forge.entry([forge.token("u")], forge._CODED | forge._SAME, shared=0))
    heads = b"\0\0" + struct.pack("<f", 0.5) + b"\1\x0c"
    file.sections = [(forge.GRID, b"\2" + heads + zeros(2 * count, 2).build())]
    return file


def chain(count: int = 1 << 25, mode: int = 0, taps: tuple[int, int] = (1, 1)) -> forge.File:
    file = forge.good()
    file.tensors = [forge.entry(TOKENS, forge._CODED | forge.F32, [count // (taps[0] * taps[1]), 1, *taps])]
    head = forge.head(0, mode=mode)
    file.sections = [(forge.CHAIN, b"".join(map(forge.varint, taps)) + b"\0\1" + head + zeros(count).build())]
    return file


def chain_small() -> forge.File:
    return chain(1 << 20, taps=(4, 4))


def chain_of_tiny_layers(count: int = 8000) -> forge.File:
    """A chain of many layers of one weight."""
    file = forge.good()
    first = forge.entry([forge.token("l"), forge.token("0"), forge.token("weight")], forge._CODED, [1, 1, 1, 1])
    same = forge._CODED | forge._SAME
    rest = [forge.entry([forge.token(str(i)), forge.varint(3)], same, shared=1) for i in range(1, count)]
    file.tensors = [first, *rest]
    heads = [forge.varint(0), *(forge.head(i, mode=0) for i in range(1, count))]
    file.chain = forge.Chain((1, 1), 1, None, heads, bytes(4), [forge.group([0] * (count - 1), count - 1)], b"")
    file.raw = b""
    return file


def pruned_chain_of_tiny_layers(count: int = 5000) -> forge.File:
    """The ancestors of all are of another parity, so that none is ever found."""
    file = chain_of_tiny_layers(count)
    heads = [forge.head(i, mode=4 if i else 0) for i in range(count)]
    file.chain = forge.Chain((1, 1), 0, None, heads, b"", [forge.group([0] * count, count)], b"")
    origins = [forge.origin([i], 1 << 30, forge.varint(0) + struct.pack(">I", i << 2), 1) for i in range(count)]
    body = forge.varint(count) + b"".join(origins)
    file.sections = [(forge.STRUCTURE, body), (forge.CHAIN, file.chain.build()), (forge.RAW, b"")]
    return file


def map_of_zeros(count: int = 1 << 24) -> forge.File:
    """All but one weight of a chain, in a coded map."""
    file = forge.good()
    file.tensors = [forge.entry(TOKENS, forge._CODED | forge.F32, [count // 4, 1, 2, 2])]
    head = forge.head(0, mode=8)
    packed = np.full(count // 8, 255, np.uint8)
    packed[0] = 127
    index = forge.indices(packed, 256)
    file.sections = [(forge.CHAIN, b"\2\2\0\1" + head + index + forge.group([1]).build())]
    return file


def sparse(count: int = 1 << 25) -> forge.File:
    packed = np.full(count // 8, 255, np.uint8)
    return one_tensor(forge.SPARSE, forge.indices(packed, 256), b"", [count], 1)


def fields(count: int = 1 << 22) -> forge.File:
    """A bit each, in integers of eight."""
    return one_tensor(forge.FIELDS, b"\1", zeros(8 * count).build(), [count], forge.U8)


def floats(count: int = 1 << 23) -> forge.File:
    return one_tensor(forge.FLOATS, b"\0", zeros(4 * count, 4).build(), [count])


def codebook(count: int = 1 << 26) -> forge.File:
    book = b"\1\1\x40" + struct.pack("<64f", *range(64))
    file = one_tensor(forge.CODEBOOK, b"", b"", [count])
    file.sections = [(forge.CODEBOOK, book + b"\1\0\0" + zeros(count // 64).build())]
    return file


def packed_by_lzma(count: int = 1 << 25) -> forge.File:
    """Eight symbols a byte."""
    stream = lzma.compress(bytes(count // 8), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    payload = forge.varint(len(stream)) + stream
    group = forge.Group(1, 3, b"\0\2", payload).build()
    return one_tensor(forge.GRID, b"\0" + struct.pack("<f", 0.5), group, [count])


def by_classes(count: int = 1 << 25) -> forge.File:
    """As many blocks as there may be, of as few symbols as the tensor then has; all but one are of one class."""
    rare, part = zeros(count >> 20), zeros(count - (count >> 20))
    places = b"\0\xc0" + bytes((1 << 17) - 1)  # class 1 once, then class 0 for good
    payload = forge.varint(count >> 20) + places + forge.varint(len(part.payload)) + part.payload + rare.payload
    group = forge.Group(1, 4, b"\2" + part.table + rare.table, payload).build()
    return one_tensor(forge.GRID, b"\0" + struct.pack("<f", 0.5), group, [count])


def by_wide_classes(count: int = 1 << 20) -> forge.File:
    """Tables of as many symbols as there may be, for a block each."""
    table = forge.varint(0) + forge.varint(1023) + b"\0\x7f" + b"\xff" * 127 + b"\xc0"
    coder = AnsCoder()
    model = coder.read_table(ByteReader(memoryview(table), "test"))
    part = coder.encode(model, np.zeros(count // 64, np.int16), [Segment.flat(count // 64)])
    order = forge.indices(np.array([0, *range(1, 64)]), 64)
    payload = forge.varint(count // 64) + order + forge.varint(len(part)) * 63 + part * 64
    group = forge.Group(1, 4, b"\x40" + table * 64, payload).build()
    return one_tensor(forge.GRID, b"\0" + struct.pack("<f", 0.5), group, [count])


def dithered(count: int = 1 << 23) -> forge.File:
    file = one_tensor(forge.DITHERED, b"", b"", [count])
    head = b"\1" + bytes(8) + b"\0" + b"\1\0" + struct.pack("<f", 1.0) + b"\0"
    file.sections = [(forge.DITHERED, head + zeros(count).build())]
    return file


def arranged(count: int = (1 << 23) + (1 << 22)) -> forge.File:
    """One index, and next to nothing for all the others, each of a single value."""
    file = one_tensor(forge.ARRANGED, b"", b"", [count])
    longest = 255
    distances = [longest] * ((count - 1) // longest) + [(count - 1) % longest]
    coder, codes = AnsCoder(), np.array(distances, np.int16)
    model = coder.fit(Run.of(codes))
    gaps = forge.Group(1, 2, coder.table(model), coder.encode(model, codes, [Segment.flat(len(codes))]))
    book = b"\1\2\1" + struct.pack("<2f", 1, 2)
    head = b"\1\0\0\1\0" + bytes([longest]) + forge.varint(len(codes)) + b"\1"
    file.sections = [(forge.ARRANGED, book + head + gaps.build() + forge.group([1]).build())]
    return file


def graph(size: int = 1 << 28) -> forge.File:
    packed = lzma.compress(bytes(size), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    file = forge.good()
    file.sections = [(forge.GRAPH, b"\4onnx" + forge.varint(size) + packed), *golden_sections(file)]
    return file


def golden_sections(file: forge.File) -> list[tuple[int, bytes]]:
    return [(forge.CHAIN, file.chain.build()), (forge.RAW, file.raw)]


def norms(channels: int = 1 << 20) -> forge.File:
    file = forge.good()
    roles = ["weight", "bias", "running_mean", "running_var"]
    first = forge.entry([forge.token("n"), forge.token(roles[0])], forge._CODED | forge.F32, [channels])
    same = forge._CODED | forge._SAME
    file.tensors = [first, *(forge.entry([forge.token(role)], same, shared=1) for role in roles[1:])]
    body = b"\1\3" + forge.norm_head(0) + zeros(channels).build() + zeros(channels).build()
    file.sections = [(forge.BATCH_NORM, body)]
    return file


def raw(count: int = 1 << 23) -> forge.File:
    file = forge.good()
    file.tensors = [forge.entry(TOKENS, forge.F32, [count])]
    file.sections = [(forge.RAW, bytes(4 * count))]
    return file


def one_bit_each(count: int = 1 << 23) -> forge.File:
    return one_tensor(forge.GRID, b"\0" + struct.pack("<f", 0.5), single_bits(count).build(), [count])


def metadata() -> forge.File:
    """A MiB of the smallest values, and of keys, the last of them twice."""
    file = forge.good()
    file.metadata = b'{"a":[' + b"[]," * 349_000 + b"[]]}"
    return file


def many_keys() -> forge.File:
    file = forge.good()
    keys = [str(i) for i in range(100_000)]
    file.metadata = ("{" + ",".join(f'"{key}":0' for key in [*keys, keys[-1]]) + "}").encode()
    return file


def structure(kernels: int = 1 << 18) -> forge.File:
    file = forge.good()
    file.tensors = [forge.entry(TOKENS, forge.F32, [kernels, 0])]
    file.sections = [(forge.STRUCTURE, b"\1" + forge.origin([0], kernels, b"\xff" * (kernels // 8))), (forge.RAW, b"")]
    return file


def long_names() -> forge.File:
    """One long component, repeated for a byte each time."""
    file = forge.good()
    file.tensors[2] = forge.entry([forge.token("x" * 1000), *[forge.varint(4)] * 20_000], 0, [3])
    return file


def many_long_names(count: int = 40_000) -> forge.File:
    """Names of a thousand bytes for six bytes each."""
    file = forge.good()
    file.tensors = [forge.entry([forge.token("x" * 1000), forge.token("0")], 0, [0])]
    more = [forge.entry([forge.token(str(i))], forge._SAME, shared=1) for i in range(1, count)]
    file.tensors += more
    file.sections = [(forge.RAW, b"")]
    return file


def many_raw_sections(count: int = 10_000) -> forge.File:
    """Of a byte each, the tensors too."""
    first = forge.entry([forge.token("0")], forge.U8, [1])
    rest = [forge.entry([forge.token(str(i))], forge.U8 | forge._SAME) for i in range(1, count)]
    return forge.File(tensors=[first, *rest], sections=[(forge.RAW, b"x")] * count)


def many_sections(count: int = 20_000) -> forge.File:
    file = forge.good()
    file.tensors, file.sections = [], [(99, b"")] * count
    file.other_importance = tuple(range(count))
    return file


BOMBS: dict[str, Callable[[], forge.File]] = {
    f.__name__: f
    for f in (
        grid,
        grid_with_axis,
        grid_predicted,
        chain,
        chain_small,
        chain_of_tiny_layers,
        pruned_chain_of_tiny_layers,
        map_of_zeros,
        sparse,
        fields,
        floats,
        norms,
        codebook,
        packed_by_lzma,
        by_classes,
        by_wide_classes,
        dithered,
        arranged,
        graph,
        raw,
        one_bit_each,
        metadata,
        many_keys,
        structure,
        long_names,
        many_long_names,
        many_raw_sections,
        many_sections,
    )
}
REFUSED = {
    "grid_predicted": "limit",
    "chain": "limit",
    "map_of_zeros": "limit",
    "many_keys": "metadata",
    "long_names": "name",
    "many_long_names": "limit",
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_of_maximum_work(name: str, tmp_path: Path) -> None:
    """At most 64 times the file and 64 MiB besides what is restored; in two seconds for each 32 MiB of that."""
    path = tmp_path / "x.ilwp"
    data = BOMBS[name]().build()
    path.write_bytes(data)
    grown, seconds, restored, code = read_in_a_child(path, ledger=True)
    assert code == REFUSED.get(name, "read")
    assert grown - restored < 64 * len(data) + 64 * MIB, (grown, restored, len(data))
    assert seconds < 2 * max(1, restored / (32 * MIB)), seconds


def test_every_kind_is_among_them() -> None:
    kinds = {number for make in BOMBS.values() for number, _ in make().sections or [(2, b""), (3, b""), (1, b"")]}
    assert {kind.number for kind in SECTIONS.values()} - {63} <= kinds


@pytest.mark.parametrize("name", ["grid", "fields", "norms", "chain_of_tiny_layers", "metadata", "raw", "sparse"])
def test_the_callers_limit_bounds_everything(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ilwp"
    path.write_bytes(BOMBS[name]().build())
    grown, _, _, code = read_in_a_child(path, max_bytes=0)
    assert code == "limit"
    assert grown < 24 * MIB + path.stat().st_size


def test_limit_of_the_caller() -> None:
    data = forge.good().build()
    assert read(data, max_bytes=60).state()
    with pytest.raises(LimitError, match=r"takes 60 bytes, the limit is 59 \(max_bytes\)") as caught:
        read(data, max_bytes=59)
    assert caught.value.code == "limit"


def test_a_larger_limit_lets_pass_what_is_refused_without(tmp_path: Path) -> None:
    path = tmp_path / "x.ilwp"
    path.write_bytes(chain().build())
    with pytest.raises(LimitError, match="read it with a larger max_bytes"):
        read(path)
    assert read(path, max_bytes=1 << 30).state()["t.weight"].shape == (1 << 25, 1, 1, 1)


def hostile() -> dict[str, bytes]:
    """Files under 1 KiB that claim 2^40 weights and more, well signed."""
    files = {}
    for name, shape in {"coded": [1 << 39, 1, 2, 1], "raw": [1 << 40]}.items():
        file = forge.good()
        code = forge._CODED if name == "coded" else 0
        file.tensors[3] = forge.entry([forge.token("c"), forge.varint(2)], code, shape)
        files[name] = file.build()
    one = forge.good()
    one.tensors[3] = forge.entry([forge.token("c"), forge.varint(2)], forge._CODED, [1 << 39, 1, 2, 1])
    one.chain.groups = [forge.Group(2, 1, forge.table(0, [1]), bytes(64))]
    files["one symbol"] = one.build()
    aliases = forge.good()
    aliases.tensors[3] = forge.entry([forge.token("c"), forge.varint(2)], 0, [0, 1 << 40])
    files["empty"] = aliases.build()
    return files


@pytest.mark.parametrize("name", sorted(hostile()))
def test_hostile_headers_take_no_memory(name: str, tmp_path: Path) -> None:
    data = hostile()[name]
    assert len(data) < 1024
    (tmp_path / "x").write_bytes(data)
    grown, seconds, _, code = read_in_a_child(tmp_path / "x")
    assert grown < 8 * MIB and seconds < 1 and code != "read"
    with pytest.raises(FormatError):
        read(data)


def test_broken_payloads_are_refused_before_large_allocations(tmp_path: Path) -> None:
    """Of eight million weights only so many are decoded as the payload holds."""
    file = grid(1 << 23)
    (kind, body), *_ = file.sections or []
    file.sections = [(kind, body[:-100])]
    (tmp_path / "x").write_bytes(file.build())
    grown, _, _, code = read_in_a_child(tmp_path / "x")
    assert code == "too-short" and grown < 8 * MIB


def test_many_tensors_are_read_in_linear_time(tmp_path: Path) -> None:
    times = []
    for count in (5_000, 20_000):
        path = tmp_path / f"{count}"
        first = forge.entry([forge.token("block"), forge.token("0"), forge.token("weight")], 0, [1])
        rest = [forge.entry([forge.token(str(i)), b"\3"], forge._SAME, shared=1) for i in range(1, count)]
        file = forge.File(tensors=[first, *rest], sections=[(forge.RAW, bytes(4 * count))])
        path.write_bytes(file.build())
        _, seconds, restored, code = read_in_a_child(path, ledger=True)
        assert code == "read" and restored == 4 * count
        times.append(seconds)
    assert times[1] < 8 * times[0] and times[1] < 3


def test_kinds_keep_what_they_are_for() -> None:
    assert isinstance(read(chain_small().build()).sections[0], ChainSection)
    assert isinstance(read(raw(10).build()).sections[0], RawSection)
