"""Whole files: round trips of anything, reading in parts, unknown sections, a kind and a coder that live here alone."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ilwp_plugin import format as ilwp
from ilwp_plugin.errors import FileError, FormatError, LimitError, RegistryError, TensorError
from ilwp_plugin.format import SECTIONS, Section, TensorInfo, file, measure, pack, read, write
from ilwp_plugin.format.coding import CODERS, Coder, Histogram, Run, Segment, Symbols
from ilwp_plugin.format.container import SectionBytes
from ilwp_plugin.format.container import pack as pack_bytes
from ilwp_plugin.format.dtypes import DTYPES
from ilwp_plugin.format.sections.base import Context, read_info
from ilwp_plugin.format.stream import ByteReader, ByteWriter
from ilwp_plugin.ledger import Ledger
from tests.corpus import forge, golden

MADE = {name: make() for name, make in golden.WRITTEN.items()}


def data_of(name: str) -> bytes:
    return b"".join(pack(*MADE[name]))


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", sorted(MADE))
def test_what_was_written_is_read_and_written_again(name: str, tmp_path: Path) -> None:
    infos, sections = MADE[name]
    data = data_of(name)
    again = read(data)
    assert again.infos == tuple(infos) and again.names == [info.name for info in infos]
    assert b"".join(pack(again.infos, again.sections)) == data
    assert again.ledger == measure(infos, sections) and again.ledger.file_bytes == len(data)
    assert sum(layer.file_bytes for layer in again.ledger.layers.values()) <= len(data)
    assert again.digest == data[-16:].hex() and again.metadata == next(
        (section.value for section in sections if isinstance(section, ilwp.MetadataSection)), {}
    )
    before = {key: value for section in sections for key, value in section.restore_all()}
    state = again.state(as_bits=True)
    assert list(state) == again.names
    for info in infos:
        owner = infos[info.alias_of].name if info.storage == "alias" else info.name
        assert same(state[info.name], before[owner]) and state[info.name].nbytes == info.nbytes
        assert same(again.tensor(info.name, as_bits=True), before[owner])
        assert same(again.tensor(info.name, as_bits=True, copy=False), before[owner])
        if info.storage == "alias":
            assert state[info.name] is state[owner]
    ledger = write(tmp_path / "x", infos, sections)
    assert (tmp_path / "x").read_bytes() == data and ledger == again.ledger
    summaries = [summary for section in again.sections for summary in section.summaries()]
    assert summaries == [summary for section in sections for summary in section.summaries()]


@pytest.mark.parametrize("flags", range(16))
def test_planes_that_others_coded_otherwise_are_written_again(flags: int) -> None:
    """Whether each plane of a floats section is coded is up to its writer: as it was read, so it is written."""
    file, stored = forge.good(), flags.bit_count()
    codes = [] if flags == 15 else [7] * (16 - 4 * stored)
    forge._floats(flags, b"\0\0\0\0" * stored, [])(file)
    (kind, body), raw = file.sections or []
    groups = [forge.group(codes, 4 - stored).build()] if codes else []
    file.sections = [(kind, body + b"".join(groups)), raw]
    data = file.build()
    again = read(data)
    assert b"".join(pack(again.infos, again.sections)) == data
    assert same(read(b"".join(pack(again.infos, again.sections))).tensor("f.weight"), again.tensor("f.weight"))


@pytest.mark.parametrize("name", sorted(MADE))
def test_one_tensor_alone(name: str) -> None:
    """Of a file that nobody has verified, in any order."""
    state = read(data_of(name)).state(as_bits=True)
    for key in reversed(state):
        assert same(read(data_of(name), verify=False).tensor(key, as_bits=True), state[key])
    lazy = read(data_of(name), verify=False)
    assert lazy.ledger == read(data_of(name)).ledger
    assert all(same(value, state[key]) for key, value in lazy.state(as_bits=True).items())


def test_new_arrays_each_time() -> None:
    for name in ("collocated", "grid", "norms_5", "sparse", "fields", "floats", "every_dtype"):
        opened = read(data_of(name))
        for info in opened.infos:
            first = opened.tensor(info.name, as_bits=True)
            before = first.copy()
            first[...] = 1 if first.dtype.kind != "b" else ~first
            assert same(opened.tensor(info.name, as_bits=True), before), info.name
            for value in opened.state(as_bits=True).values():
                value[...] = value[::-1] if value.ndim else value
            assert same(opened.tensor(info.name, as_bits=True), before), info.name


def test_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    opened = read(data_of("every_dtype"))
    assert opened.tensor("of.bfloat16").dtype == ml_dtypes.bfloat16
    assert opened.state()["of.float8_e5m2"].dtype == ml_dtypes.float8_e5m2
    assert {info.dtype for info in opened.infos} == set(DTYPES)


def test_no_such_tensor() -> None:
    with pytest.raises(TensorError, match=r"no tensor 'x' in the file; it has 'a.weight', 'b.weight', 'b.bias' and"):
        read(forge.good().build()).tensor("x")
    with pytest.raises(TensorError, match="it has none"):
        read(data_of("nothing")).tensor("x")


def test_without_verification_what_is_looked_at_is_checked() -> None:
    data = bytearray(data_of("two_raw_sections"))
    before = read(bytes(data))
    data[data.index(before.tensor("2").tobytes())] ^= 1
    with pytest.raises(FormatError, match="the checksum of the file") as caught:
        read(bytes(data))
    assert caught.value.code == "file-checksum"
    lazy = read(bytes(data), verify=False)
    assert same(lazy.tensor("4"), before.tensor("4")), "in another section"
    for look in (lambda: lazy.tensor("1"), lazy.state, lambda: lazy.tensor("2", copy=False)):
        with pytest.raises(FormatError, match=r"section 0 \(raw\): damaged") as caught:
            look()
        assert caught.value.code == "section-checksum"


def test_only_what_is_needed_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a grid the group of a tensor, of a chain what stands before a layer, too."""
    decoded: list[int] = []
    for coder in CODERS.values():
        decode = coder.decode

        def spy(model: Any, payload: memoryview, segments: Any, reader: Any, decode: Any = decode) -> Symbols:
            decoded.append(len(payload))
            return decode(model, payload, segments, reader)

        monkeypatch.setattr(coder, "decode", spy)
    wide = np.random.default_rng(0)
    infos = [TensorInfo(f"{i}", "float32", (4000,), "coded") for i in range(3)]
    codes = [(wide.standard_normal(4000) * 10 ** (i + 1)).astype(np.int16) for i in range(3)]
    values = [ilwp.IntegerTensor(own, np.float32(1)) for own in codes]
    lazy = read(b"".join(pack(infos, [ilwp.GridSection(infos, values, "auto")])), verify=False)
    assert not decoded, "the header is enough to open a file"
    assert lazy.tensor("1").tolist() == codes[1].tolist() and len(decoded) == 1
    lazy.tensor("1")
    assert len(decoded) == 1, "what was decoded is kept"
    lazy.state()
    assert len(decoded) == 3


def test_unknown_ancillary_sections_are_kept(tmp_path: Path) -> None:
    opened = read(data_of("unknown_section"))
    kept = [section for section in opened.sections if isinstance(section, ilwp.OpaqueSection)]
    assert [(section.number, bytes(section.data)) for section in kept] == [(77, b"whatever"), (1 << 40, b"")]
    write(tmp_path / "x", opened.infos, opened.sections)
    assert (tmp_path / "x").read_bytes() == data_of("unknown_section")
    assert opened.ledger.other_bytes >= 8
    with pytest.raises(NotImplementedError):
        ilwp.OpaqueSection.decode(ByteReader(memoryview(b""), "x"), Context((), read_budget()))


def read_budget() -> Any:
    from ilwp_plugin.format.budget import Budget

    return Budget(0, "test")


def test_large_sections_are_aligned() -> None:
    """So that their tensors can be mapped: each lies at a multiple of the size of its values."""
    from ilwp_plugin.format.container import read_archive

    data = data_of("aligned")
    (entry,) = [e for e in read_archive(memoryview(data), "x", read_budget()).sections if e.number == 1]
    assert entry.offset % 64 == 0 and entry.length >= 1 << 18
    view = read(data).tensor("large", copy=False)
    assert not view.flags.owndata and not view.flags.writeable
    assert np.shares_memory(view, np.frombuffer(data, np.uint8))
    small = read(data_of("every_dtype"))
    own = [info for info in small.infos if info.storage == "raw"]
    (section,) = [section for section in small.sections if isinstance(section, ilwp.RawSection)]
    at = 0
    for info in section.infos:
        assert at % min(8, DTYPES[info.dtype].itemsize) == 0
        at += info.nbytes
    assert len(section.infos) == len(own)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_tensors_in_any_section(data: st.DataObject) -> None:
    """Names, dtypes, shapes and storages at random; the same bytes when written again."""
    infos: list[TensorInfo] = []
    raw: dict[str, NDArray[Any]] = {}
    kinds: dict[str, list[TensorInfo]] = {"sparse": [], "fields": [], "floats": [], "grid": []}
    values: dict[str, Any] = {}
    names = data.draw(st.lists(st.from_regex(r"[a-c0-2]{1,3}(\.[a-c0-2é]{1,3}){0,3}", fullmatch=True), unique=True))
    for name in names:
        dtype = data.draw(st.sampled_from([*DTYPES.values()]))
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
        carried = data.draw(hnp.arrays(np.uint8, (int(np.prod(shape)) * dtype.itemsize,)))
        array = ((carried & 1) if dtype.kind == "bool" else carried).view(dtype.carrier).reshape(shape)
        fitting = ["raw"]
        if array.size and ilwp.is_real(dtype.name):
            fitting += ["floats", "grid"] + (["sparse"] if not carried.all() else [])
        if array.size and dtype.kind in ("signed", "unsigned"):
            fitting.append("fields")
        kind = data.draw(st.sampled_from(fitting))
        info = TensorInfo(name, dtype.name, shape, "raw" if kind == "raw" else "coded")
        infos.append(info)
        if kind == "raw":
            raw[name] = array
        else:
            kinds[kind].append(info)
            values[name] = array
    sections: list[Section] = []
    own = kinds["sparse"]
    zeroed = {i.name: values[i.name].copy() for i in own}
    for value in zeroed.values():
        value.reshape(-1)[0] = 0
    if own:
        sections.append(ilwp.SparseSection(own, zeroed))
    if own := kinds["fields"]:
        bits = {info.name: data.draw(st.integers(1, 8)) for info in own}
        sections.append(ilwp.FieldSection(own, {i.name: values[i.name] for i in own}, bits))
    if own := kinds["floats"]:
        sections.append(ilwp.FloatSection(own, {i.name: values[i.name] for i in own}))
    if own := kinds["grid"]:
        codes = [np.arange(info.numel).reshape(info.shape) - 3 for info in own]
        sections.append(ilwp.GridSection(own, [ilwp.IntegerTensor(c, np.float32(0.5)) for c in codes], "auto"))
    sections += ilwp.RawSection.split(infos, raw)
    packed = b"".join(pack(infos, sections))
    opened = read(packed)
    assert opened.infos == tuple(infos) and b"".join(pack(opened.infos, opened.sections)) == packed
    assert opened.ledger == measure(infos, sections) and opened.ledger.file_bytes == len(packed)
    state = opened.state(as_bits=True)
    expected = {name: value for section in sections for name, value in section.restore_all()}
    assert all(same(state[name], expected[name]) for name in names) and set(state) == set(names)


# --- a kind of section and a coder that exist here alone


class Reversed(Section):
    """Tensors of bytes, stored backwards."""

    number = 64
    name = "reversed"
    part = "other"

    def __init__(self, infos: Sequence[TensorInfo], values: dict[str, NDArray[Any]]) -> None:
        self.infos, self.values = list(infos), values

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.infos]

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        for info in self.infos:
            with writer.charge(self.part, info.name):
                writer.varint(position[info.name])
                writer.raw(self.values[info.name].tobytes()[::-1])

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> "Reversed":
        infos, values = [], {}
        while reader.remaining:
            with reader.charge_later() as entry:
                info = read_info(reader, context.directory, "a reversed section")
                entry.account = (cls.part, info.name)
                values[info.name] = np.frombuffer(bytes(reader.raw(info.nbytes))[::-1], np.uint8).reshape(info.shape)
            infos.append(info)
        return cls(infos, values)

    def restore(self, name: str) -> NDArray[Any]:
        return self.values[name].copy()

    def summaries(self) -> list[ilwp.Summary]:
        return [ilwp.Summary(info.name, self.name, info.shape, {"backwards": True}) for info in self.infos]


class Last(Coder):
    """Differences from the symbol before, in two bytes each; the first of a row from the first of the row before.

    It looks at how the symbols lie, and stores no table.
    """

    id = 24
    density = 1

    def fit(self, run: Run) -> None:
        return None

    def table(self, model: None) -> bytes:
        return b""

    def read_table(self, reader: ByteReader) -> None:
        return None

    def bits(self, model: None, histogram: Histogram) -> int:
        return 16 * int(histogram.counts.sum())

    def encode(self, model: None, symbols: Symbols, segments: Sequence[Segment]) -> bytes:
        out, at = b"", 0
        for segment in segments:
            rows = symbols[at : at + segment.count].astype(np.int64).reshape(segment.shape[0], -1)
            steps = np.diff(rows, axis=1, prepend=0)
            steps[1:, 0] -= rows[:-1, 0]
            out += steps.astype("<i2").tobytes()
            at += segment.count
        return out

    def decode(self, model: None, payload: memoryview, segments: Sequence[Segment], reader: ByteReader) -> Symbols:
        steps = np.frombuffer(payload, "<i2").astype(np.int64)
        found, at = [], 0
        for segment in segments:
            rows = steps[at : at + segment.count].reshape(segment.shape[0], -1).copy()
            rows[:, 0] = rows[:, 0].cumsum()
            found.append(rows.cumsum(axis=1).ravel())
            at += segment.count
        return np.concatenate(found).astype(np.int16)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(SECTIONS, "_items", dict(SECTIONS._items))
    monkeypatch.setattr(CODERS, "_items", dict(CODERS._items))
    SECTIONS.register("reversed")(Reversed)
    CODERS.register("last")(Last())
    yield


def test_a_kind_that_lives_here_alone(registered: None, tmp_path: Path) -> None:
    """Written, read, measured, shown, copied, refused elsewhere: by registration only."""
    infos = [TensorInfo("a.x", "uint8", (2, 3), "coded"), TensorInfo("b", "float32", (), "raw")]
    values = {"a.x": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    sections = [Reversed(infos[:1], values), *ilwp.RawSection.split(infos, {"b": np.array(1.5, np.float32)})]
    ledger = write(tmp_path / "x", infos, sections)
    opened = read(tmp_path / "x")
    assert opened.state()["a.x"].tolist() == [[0, 1, 2], [3, 4, 5]] and opened.ledger == ledger
    assert ledger.layers["a.x"].file_bytes > 7 and opened.sections[0].summaries()[0].details == {"backwards": True}
    assert b"".join(pack(opened.infos, opened.sections)) == (tmp_path / "x").read_bytes()
    del SECTIONS._items["reversed"]
    with pytest.raises(FormatError, match="unknown kind 64; a newer version") as caught:
        read(tmp_path / "x")
    assert caught.value.code == "section-unknown"


def test_a_coder_that_lives_here_alone(registered: None) -> None:
    infos = [TensorInfo(f"{i}.weight", "float32", (10, 1, 3, 3), "coded") for i in range(3)]
    ramps = [np.arange(90).reshape(10, 1, 3, 3) * (i + 1) for i in range(3)]
    values = [ilwp.IntegerTensor(ramp, np.float32(1)) for ramp in ramps]
    packed = b"".join(pack(infos, [ilwp.GridSection(infos, values, "last")]))
    opened = read(packed)
    assert all(opened.state()[info.name].tolist() == ramp.tolist() for info, ramp in zip(infos, ramps, strict=True))
    assert {group.coder for group in opened.sections[0].coding} == {"last"}  # type: ignore[attr-defined]
    assert opened.ledger.file_bytes == len(packed) and b"".join(pack(opened.infos, opened.sections)) == packed
    del CODERS._items["last"]
    with pytest.raises(FormatError, match="unknown coder 24") as caught:
        read(packed)
    assert caught.value.code == "coder-unknown"


def test_kinds_keep_their_numbers() -> None:
    assert {name: (SECTIONS[name].number, SECTIONS[name].ancillary, SECTIONS[name].single) for name in SECTIONS} == {
        "raw": (1, False, False),
        "chain": (2, False, False),
        "metadata": (3, True, True),
        "grid": (4, False, False),
        "batch_norm": (5, False, False),
        "structure": (6, False, True),
        "sparse": (7, False, False),
        "fields": (8, False, False),
        "floats": (9, False, False),
        "graph": (10, True, True),
        "codebook": (11, False, False),
        "dithered": (12, False, False),
        "arranged": (13, False, False),
    }
    assert all(SECTIONS[name].name == name for name in SECTIONS)
    assert {name: CODERS[name].id for name in CODERS} == {"huffman": 1, "ans": 2, "lzma": 3, "ans-classes": 4}
    with pytest.raises(RegistryError, match="section 'raw' is registered already"):
        SECTIONS.register("raw")(Reversed)


def test_errors_survive_pickling() -> None:
    """They cross the borders of processes."""
    for error in (FormatError("x", "padding"), LimitError("y")):
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
            assert type(other) is type(error) and (str(other), other.code) == (str(error), error.code)


def test_sources(tmp_path: Path) -> None:
    data = forge.good().build()
    (tmp_path / "x").write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), tmp_path / "x", str(tmp_path / "x")):
        assert read(source).digest == data[-16:].hex()
    with pytest.raises(FileError, match="No such file"):
        read(tmp_path / "absent")
    with pytest.raises(FormatError, match=r"x: truncated"):
        (tmp_path / "x").write_bytes(data[:-1])
        read(tmp_path / "x")
    with pytest.raises(FormatError, match=r"^named here: "):
        read(b"?", where="named here")


def test_what_is_no_file_of_ours_is_not_written(tmp_path: Path) -> None:
    """What was written is read back, and has to be what was meant."""

    class Liar(ilwp.RawSection):
        def view(self, name: str) -> NDArray[Any]:
            return super().view(name) + 1

    infos = [TensorInfo("a", "float32", (2,), "raw")]
    with pytest.raises(FileError, match="what was read back is wrong: tensor 'a' is not restored"):
        write(tmp_path / "x", infos, [Liar(infos, {"a": np.zeros(2, np.float32)})])
    with pytest.raises(FileError, match="tensor 'b' is in 0 sections"):
        write(
            tmp_path / "x",
            [*infos, TensorInfo("b", "int8", (), "raw")],
            ilwp.RawSection.split(infos, {"a": np.zeros(2, np.float32)}),
        )
    assert not list(tmp_path.iterdir())


def test_header_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilwp_plugin.format.container.archive._MAX_HEADER", 5)
    with pytest.raises(TensorError, match="the names and shapes of 1 tensors take over 5 bytes"):
        list(pack_bytes([TensorInfo("a", "int8", (1,), "raw")], [SectionBytes(1, False, [b"x"], Ledger())]))


def test_the_reading_path_executes_nothing() -> None:
    """No pickle, eval, exec or import by name in any module that reading a file imports."""
    package = Path(ilwp.__file__).parent
    paths = [
        *package.rglob("*.py"),
        *(package.parent / f"{n}.py" for n in ("errors", "ledger", "registry", "strict_json")),
    ]
    assert len(paths) > 25
    for path in paths:
        text = path.read_text()
        words = ("pickle", "eval(", "exec(", "torch", "__import__", "import_module", "marshal", "shelve", "subprocess")
        allowed = {"dtypes.py": "torch", "ledger.py": "pickle", "faults.py": "torch"}
        found = [word for word in words if word in text.replace("unpickled", "") and allowed.get(path.name) != word]
        assert not found, (path, found)


def test_state_of_an_interpreter_with_optimization() -> None:
    """Nothing that reading checks is an assert."""
    code = "from tests.corpus import golden; [golden.values_of(d) for n, d in golden.cases().items() if len(d) < 4096]"
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-OO", "-c", code], check=True, cwd=root)


def test_same_bits() -> None:
    one = np.array([1.5, np.nan], np.float32)
    assert file._same_bits(one, one.copy()) and not file._same_bits(one, one[:1])
    assert not file._same_bits(np.array(0.0), np.array(-0.0)) and not file._same_bits(one, one.astype(np.float64))
    assert file._same_bits(np.zeros(2, np.complex128), np.zeros(2, np.complex128))
