"""What sections say of themselves, give up, and refuse to be made of; their bytes are in the corpus."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import entropy

from ilwp_plugin import format as ilwp
from ilwp_plugin.errors import FormatError, TensorError
from ilwp_plugin.format import SECTIONS, Section, TensorInfo, measure, pack, read
from ilwp_plugin.format.sections import raw
from ilwp_plugin.format.sections.base import value_bytes
from ilwp_plugin.format.sections.chain import storage_mode
from ilwp_plugin.ledger import PARTS
from tests.corpus import golden

FILES = {name: read(b"".join(pack(*make()))) for name, make in golden.WRITTEN.items()}
ALL: list[tuple[str, Section]] = [(name, section) for name, file in FILES.items() for section in file.sections]


def of(name: str, kind: type[Section]) -> Any:
    return next(section for section in FILES[name].sections if isinstance(section, kind))


def test_every_kind_is_there() -> None:
    assert {section.name for _, section in ALL} >= set(SECTIONS) - {"graph"}


@pytest.mark.parametrize(("name", "section"), ALL, ids=lambda value: value if isinstance(value, str) else value.name)
def test_what_every_section_offers(name: str, section: Section) -> None:
    names = list(section.names)
    assert len(set(names)) == len(names) and [n for n, _ in section.restore_all()] == names
    assert section.part in PARTS and (names == [] or not section.ancillary)
    section.check()
    encoded = section.encode(FILES[name].infos)
    assert encoded.length == sum(map(len, encoded.chunks)) == encoded.ledger.file_bytes
    assert (encoded.number, encoded.ancillary, list(encoded.names)) == (section.number, section.ancillary, names)
    for summary in section.summaries():
        assert summary.kind == section.name and summary.details
    with pytest.raises(KeyError):
        section.restore("no such tensor")


@pytest.mark.parametrize(
    "name", ["grid", "sparse", "fields", "floats", "codebooks", "dithered_levels", "arranged", "every_dtype", "norms_5"]
)
def test_without_some_of_its_tensors(name: str) -> None:
    """Both of a section that was read and of one that was made."""
    made = golden.WRITTEN[name]()[1]
    for section in [*FILES[name].sections, *made]:
        if isinstance(section, (ilwp.MetadataSection,)):
            continue
        gone = section.names[0]
        left = section.without({gone})
        norm = isinstance(section, ilwp.BatchNormSection)
        expected = [
            n for n in section.names if n != gone and not (norm and n.partition(".")[0] == gone.partition(".")[0])
        ]
        if not expected:
            assert left is None
            continue
        assert left is not None and list(left.names) == expected
        for kept in expected:
            assert left.restore(kept).tobytes() == section.restore(kept).tobytes()
        assert section.without(set(section.names)) is None
        infos = [info for info in FILES[name].infos if info.name in expected]
        again = read(b"".join(pack(infos, [left])))
        assert all(again.tensor(n, as_bits=True).tobytes() == section.restore(n).tobytes() for n in expected)


def test_chains_need_all_their_layers() -> None:
    chain = of("collocated", ilwp.ChainSection)
    assert chain.without(set()) is chain
    with pytest.raises(NotImplementedError, match="a chain section cannot do without some of its tensors"):
        chain.without({chain.names[0]})


def test_layers_of_a_stored_chain() -> None:
    chain = of("full", ilwp.ChainSection)
    made = next(s for s in golden.WRITTEN["full"]()[1] if isinstance(s, ilwp.ChainSection))
    assert len(chain.layers) == 4 and chain.layers[0].quantized is None and chain.layers[-1].mode == "full"
    for stored, own in zip(chain.layers[1:], made.layers[1:], strict=True):
        a, b = stored.quantized, own.quantized
        assert a is not None and b is not None and (a.step, a.bits) == (b.step, b.bits)
        assert np.array_equal(a.codes, b.codes) and np.array_equal(a.references, b.references)
        assert stored.kernels == own.kernels == len(a.codes)
    with pytest.raises(IndexError):
        chain.layers[4]
    masked = of("masked", ilwp.ChainSection).layers[2].quantized
    assert masked is not None and masked.zeros is not None and not masked.codes[masked.zeros].any()


def test_values_of_a_stored_grid() -> None:
    stored, made = of("grid", ilwp.GridSection), golden.WRITTEN["grid"]()[1][0]
    assert isinstance(made, ilwp.GridSection) and len(stored.values) == len(made.values)
    for a, b in zip(stored.values, made.values, strict=True):
        assert np.array_equal(a.codes, b.codes) and np.array_equal(a.scale, b.scale) and a.axis == b.axis
        assert (a.zero_point is None) == (b.zero_point is None)
        assert a.zero_point is None or np.array_equal(a.zero_point, b.zero_point)
    assert len(stored.values[2:4]) == 2
    norms, own = of("norms_5", ilwp.BatchNormSection), golden.WRITTEN["norms_5"]()[1][0]
    assert isinstance(own, ilwp.BatchNormSection)
    for x, y in zip(norms.values[:], own.values, strict=True):
        assert (x.exponent, x.mantissa, x.shift_step, x.eps) == (y.exponent, y.mantissa, y.shift_step, y.eps)


def test_predicted_tensors_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long line of predictions is walked without recursion, also where nothing can be kept."""
    random = np.random.default_rng(0)
    infos = [TensorInfo(f"{i}", "float32", (4, 1, 2, 2), "coded") for i in range(1500)]
    codes = [random.integers(-2, 3, (4, 1, 2, 2)).cumsum(0)]
    while len(codes) < len(infos):
        codes.append(codes[-1] + random.integers(-1, 2, (4, 1, 2, 2)) * (random.random((4, 1, 2, 2)) < 0.1))
    values = [ilwp.IntegerTensor(own, np.float32(1)) for own in codes]
    data = b"".join(pack(infos, [ilwp.GridSection(infos, values, "auto")]))
    for room in (True, False):
        file = read(data, verify=False)
        (section,) = file.sections
        if not room:
            monkeypatch.setattr("ilwp_plugin.format.budget.Budget.keep", lambda self, count: False)
        for i in (1499, 0, 700, 701):
            assert section.restore(f"{i}").tolist() == codes[i].tolist()
        assert len(section.values._kept) == (1499 if room else 1)  # type: ignore[attr-defined]


def test_summaries() -> None:
    (chain,) = [s for s in FILES["collocated"].sections if isinstance(s, ilwp.ChainSection)]
    anchor, first, *_ = chain.summaries()
    assert anchor.details["mode"] == "anchor" and "bits" not in anchor.details
    codes = chain.layers[1].quantized
    assert codes is not None and first.details["bits"] == 8 and first.details["mode"] == "collocated"
    assert first.details["zeros"] == float((codes.codes == 0).mean())
    assert first.details["entropy"] == pytest.approx(entropy(np.unique(codes.codes, return_counts=True)[1], base=2))
    grid = of("grid", ilwp.GridSection).summaries()[0]
    assert grid.shape == (8, 1, 3, 3) and grid.details["steps"] == 8 and 3 < grid.details["entropy"] < 8


@pytest.mark.parametrize(
    ("references", "earlier", "ancestral", "mode"),
    [
        ([-1, -1], [2, 3], None, "none"),
        ([2, 3, 4, 2], [2, 3], None, "collocated"),
        ([2, 2, 4], [2, 3], None, "local"),
        ([2, 2, 4], [2, 3], [2, 2, 4], "ancestral"),
        ([2, 2, -1], [2, 3], None, "full"),
        ([1, 2, 4], [2, 3], None, "full"),
        ([0, 0], [1], None, "collocated"),
    ],
)
def test_the_cheapest_way_to_store_references(
    references: list[int], earlier: list[int], ancestral: list[int] | None, mode: str
) -> None:
    other = None if ancestral is None else np.array(ancestral)
    assert storage_mode(np.array(references), earlier, other) == mode


def test_raw_sections_of_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_ENOUGH", 40)
    infos = [
        TensorInfo(f"{i}", dtype, (i,), "raw")
        for i in range(6)
        for dtype in ("int8", "float64")
        if (i, dtype) != (0, "int8")
    ]
    infos = [TensorInfo(f"{n}", i.dtype, i.shape, "raw") for n, i in enumerate(infos)]
    values = {i.name: np.full(i.shape, int(i.name), i.dtype) for i in infos}
    sections = ilwp.RawSection.split(infos, values)
    assert len(sections) == 3 and [n for s in sections for n in s.names][:3] == ["0", "2", "4"]
    file = read(b"".join(pack(infos, sections)))
    assert all((file.tensor(i.name) == int(i.name)).all() and file.tensor(i.name).dtype == i.dtype for i in infos)
    assert ilwp.RawSection.split([], {}) == []
    empty = [TensorInfo("a", "int8", (0,), "raw")]
    assert read(b"".join(pack(empty, ilwp.RawSection.split(empty, {"a": np.zeros(0, np.int8)})))).state()["a"].size == 0


def test_values_are_taken_as_they_lie_in_memory() -> None:
    info = TensorInfo("a", "int16", (2, 3), "raw")
    values = np.arange(6, dtype=np.int16).reshape(2, 3)
    plain = bytes(value_bytes(values, info))
    assert plain == values.tobytes()
    for other in (values.astype(">i2"), np.asfortranarray(values), values[:, ::-1][:, ::-1], values.view(np.uint16)):
        assert bytes(value_bytes(other, info)) == plain
    assert np.shares_memory(np.frombuffer(value_bytes(values, info), np.uint8), values), "without a copy"
    for wrong in (values.astype(np.int32), values[0]):
        with pytest.raises(ValueError, match="a: "):
            value_bytes(wrong, info)


def test_metadata() -> None:
    value = {"a": [1, 2.5, None, True, "ä"], "b": {"c": -1}}
    section = ilwp.MetadataSection(value)
    assert section.value == value and section.value is not section.value
    section.value["a"].clear()
    assert section.value == value
    nested: Any = 1
    for _ in range(16):
        nested = [nested]
    assert ilwp.MetadataSection({"a": nested[0]}).value == {"a": nested[0]}
    for wrong, message in [
        ([1], "is a list"),
        ({"a": float("nan")}, "holds nan"),
        ({"a": float("-inf")}, "holds -inf"),
        ({"a": object()}, "holds a object"),
        ({1: 2}, "has a key that is no string: 1"),
        ({"a": nested}, "nested deeper than 16"),
        ({"a": 1 << 64}, "an integer of more than 64 bits"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"\udfff": 1}, "lone surrogate"),
        ({"a": "x" * (1 << 20)}, "takes 1048584 bytes, the most are 1048576"),
    ]:
        with pytest.raises(TensorError, match=message):
            ilwp.MetadataSection(wrong)  # type: ignore[arg-type]
    assert ilwp.MetadataSection({"a": (1 << 64) - 1, "b": (1, 2)}).value == {"a": (1 << 64) - 1, "b": [1, 2]}


def test_metadata_that_is_too_long_is_not_parsed() -> None:
    class Long(ilwp.OpaqueSection):
        name = "metadata"

    long = Long(3, b'{"a":"' + b"x" * (1 << 20) + b'"}')
    with pytest.raises(FormatError, match="metadata of 1048584 bytes") as caught:
        read(b"".join(pack([], [long])))
    assert caught.value.code == "metadata"


def test_structure_that_does_not_fit() -> None:
    infos = [
        TensorInfo("a.weight", "float32", (2, 1, 1, 1), "raw"),
        TensorInfo("b.weight", "float32", (2, 1, 1, 1), "alias", 0),
    ]
    origin = ilwp.Origin(np.array([0, 2]), 3)
    with pytest.raises(TensorError, match=r"provenance: no tensor 'c.weight' in the model"):
        ilwp.StructureSection({"c": origin}).encode(infos)
    with pytest.raises(TensorError, match=r"'a.weight' of shape \(2, 1, 1, 1\) has not 3 channels"):
        ilwp.StructureSection({"a": ilwp.Origin.whole(3)}).encode(infos)
    both = ilwp.StructureSection({"a": origin, "b": origin, "a.weight": origin}).encode(infos)
    assert both.length == ilwp.StructureSection({"a": origin}).encode(infos).length, "an alias is its tensor"
    assert ilwp.StructureSection({"a": ilwp.Origin.whole(2)}).encode(infos).length == 1


def test_sizes_that_sections_promise() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal(3000).astype(np.float32) * (random.random(3000) < 0.2)
    info = TensorInfo("a", "float32", (3000,), "coded")
    size = ilwp.SparseSection.size(info, values)
    assert size == ilwp.SparseSection([info], {"a": values}).encode([info]).length
    assert ilwp.SparseSection.size(info, np.ones(3000, np.float32)) is None
    assert ilwp.SparseSection.size(TensorInfo("a", "int32", (3000,), "coded"), np.zeros(3000, np.int32)) is None
    packed = random.integers(0, 4, 3000).astype(np.uint8) | (random.integers(0, 4, 3000) << 4).astype(np.uint8)
    whole = TensorInfo("a", "uint8", (3000,), "coded")
    bits = ilwp.FieldSection.best_bits(whole, packed)
    assert bits == 4 and ilwp.FieldSection.size(info, values, 4) is None
    promised = ilwp.FieldSection.size(whole, packed, bits)
    real = ilwp.FieldSection([whole], {"a": packed}, {"a": bits}).encode([whole]).length
    assert promised is not None and abs(real - promised) < 16 and real < 0.55 * 3000
    assert measure([whole], [ilwp.FieldSection([whole], {"a": packed}, {"a": bits})]).file_bytes > real


def test_graphs() -> None:
    content = bytes(range(256)) * 9000
    section = ilwp.GraphSection("onnx-1", content)
    file = read(b"".join(pack([], [section])))
    (stored,) = file.sections
    assert isinstance(stored, ilwp.GraphSection) and (stored.kind, stored.content) == ("onnx-1", content)
    assert stored.summaries()[0].details == {"bytes": len(content)} and file.ledger.file_bytes < 40_000
    assert ilwp.GraphSection("x", b"").content == b""
    for kind in ("", "a b", "ä", "-", "x" * 33):
        with pytest.raises(TensorError, match="graph: expected the name of a format"):
            ilwp.GraphSection(kind, b"")


def test_codebooks_that_a_file_cannot_hold() -> None:
    info = TensorInfo("a", "float16", (4,), "coded")

    def make(book: Any, indices: Any) -> ilwp.CodebookSection:
        return ilwp.CodebookSection([np.array(book, np.float32)], [ilwp.CodebookTensor(info, 0, np.array(indices))])

    assert make([[1, 2], [-0.0, 4]], [0, 1]).restore("a").tolist() == [1, 2, 0, 4]
    for book, indices, message in [
        ([1, 2], [0, 1], "codebook of shape"),
        ([[1, 2], [3, float("inf")]], [0, 1], "NaN or infinite"),
        ([[1, 2], [3, 4]], [0, 2], "beyond the 2 entries"),
        ([[1, 2], [3, 4]], [0, -1], "beyond the 2 entries"),
        ([[1, 2], [3, 4]], [0], "1 indices of 2 values for 4"),
        ([[1, 2], [3, 1e6]], [0, 1], "beyond the range of float16"),
    ]:
        with pytest.raises(TensorError, match=message):
            make(book, indices)


@pytest.mark.parametrize("kind", [ilwp.CodebookSection, ilwp.arranged], ids=["codebook", "arranged"])
def test_books_go_with_the_tensors_that_refer_to_them(kind: Any) -> None:
    """A file has no more of them than tensors, so that what is left of a section has to do with fewer, too."""
    infos = [TensorInfo(name, "float32", (2,), "coded") for name in "abc"]
    books = [np.array([[number], [number + 0.5]], np.float32) for number in range(3)]
    tensors = [ilwp.CodebookTensor(info, 2 - number, np.array([0, 1])) for number, info in enumerate(infos)]
    left = kind(books, tensors).without({"b", "c"})
    assert [book.tolist() for book in left.books] == [[[2], [2.5]]]
    assert read(b"".join(pack(infos[:1], [left]))).tensor("a").tolist() == [2, 2.5]
    for number in (0, 2):
        with pytest.raises(TensorError, match=f"{number} codebooks for 1 tensors"):
            kind(books[:number], [ilwp.CodebookTensor(infos[0], 0, np.array([0, 1]))])


def test_forms_of_indices_are_chosen_by_size() -> None:
    random = np.random.RandomState(0)
    book = np.arange(9, dtype=np.float32)[:, None] - 4
    kernels = random.randint(0, 9, (64, 9))
    like = np.clip(kernels[:40] + (random.random_sample((40, 9)) < 0.05), 0, 8)
    zeros = np.where(random.random_sample(4000) < 0.95, 4, random.randint(0, 9, 4000))
    indices = {"a": kernels, "b": like, "c": zeros, "d": random.randint(0, 9, 500)}
    shapes = {"a": (64, 1, 3, 3), "b": (40, 1, 3, 3), "c": (40, 100), "d": (50, 10)}
    infos = [TensorInfo(name, "float32", shape, "coded") for name, shape in shapes.items()]
    tensors = [ilwp.CodebookTensor(info, 0, indices[info.name].reshape(-1)) for info in infos]
    for coder in ("huffman", "auto"):
        section = ilwp.arranged([book], tensors, coder)
        forms = [tensor.form for tensor in section.tensors]
        assert forms[0] == "plain" and forms[1] == "collocated" and forms[3] == "plain"
        assert coder == "auto" or forms[2] == "sparse", "a code of Huffman takes a bit for each zero"
        stored = read(b"".join(pack(infos, [section])))
        for name, own in indices.items():
            assert np.array_equal(stored.tensor(name).reshape(-1), book[own.reshape(-1), 0])
        plain = ilwp.CodebookSection([book], tensors, coder).encode(infos).length
        assert section.encode(infos).length < plain
        (read_back,) = stored.sections
        assert read_back.encode(infos).chunks == section.encode(infos).chunks
        assert [s.details["form"] for s in read_back.summaries()] == forms


def test_of_forms_of_one_size_the_first_is_taken() -> None:
    """Of small tensors many are."""
    book = np.arange(3, dtype=np.float32)[:, None]
    infos = [TensorInfo(name, "float32", (2, 1, 2), "coded") for name in "ab"]
    for seed in range(40):
        indices = np.random.RandomState(seed).randint(0, 3, (2, 4))
        tensors = [ilwp.CodebookTensor(info, 0, own) for info, own in zip(infos, indices, strict=True)]
        section = ilwp.arranged([book], tensors)
        forms = [tensor.form for tensor in section.tensors]
        assert section.encode(infos).length <= ilwp.ArrangedSection([book], [*map(plain, tensors)]).encode(infos).length
        assert forms[0] in ("plain", "sparse")


def plain(tensor: ilwp.CodebookTensor) -> ilwp.ArrangedTensor:
    return ilwp.ArrangedTensor(tensor.info, tensor.book, tensor.indices)


def test_arranged_tensors_that_a_file_cannot_hold() -> None:
    info = TensorInfo("a", "float16", (4,), "coded")

    def make(indices: Any, **form: Any) -> ilwp.ArrangedSection:
        tensor = ilwp.ArrangedTensor(info, 0, np.array(indices), **form)
        return ilwp.ArrangedSection([np.array([[1], [2], [1e6]], np.float32)], [tensor])

    assert make([0, 0, 1, 0], form="sparse").restore("a").tolist() == [1, 1, 2, 1]
    for indices, form, message in [
        ([0, 1, 1], {}, "3 indices of 1 for 4"),
        ([0, 1, 1, 3], {}, "beyond the 3 entries"),
        ([0, 1, 1, 2], {}, "beyond the range of float16"),
        ([0, 1, 1, 1], {"form": "collocated"}, "which is not before"),
        ([1, 1, 1, 1], {"form": "sparse", "common": 1}, "nothing is left without index 1"),
        ([1, 1, 1, 0], {"form": "sparse", "common": 1, "longest": 0}, "0 is odd"),
    ]:
        with pytest.raises(TensorError, match=message):
            make(indices, **form)


def test_dithered_tensors_that_a_file_cannot_hold() -> None:
    info = TensorInfo("a", "float16", (3,), "coded")

    def make(levels: Any, codes: Any, step: float = 0.5) -> ilwp.DitheredSection:
        lattice = ilwp.Lattice(7, -1, None if levels is None else np.array(levels, np.float32))
        return ilwp.DitheredSection(lattice, [ilwp.DitheredTensor(info, step, 0, np.array(codes))], "auto")

    for levels, codes, step, message in [
        (None, [0, 1], 0.5, "2 codes of step 0.5"),
        (None, [0, 1, 2], 0.0, "3 codes of step 0.0"),
        (None, [0, 1, 2], float("nan"), "codes of step nan"),
        (None, [0, 1, 40000], 0.5, "a code that has no level"),
        ([1, 2], [0, 1, -1], 0.5, "a code that has no level"),
        ([1, float("nan")], [0, 0, 0], 0.5, "NaN, infinite or -0"),
        ([], [0, 0, 0], 0.5, "0 levels from code -1"),
        (None, [0, 1, 9], 1e5, "not finite"),
    ]:
        with pytest.raises(TensorError, match=message):
            make(levels, codes, step)
    drawn = ilwp.dither(7, 0, 0, 3)
    assert make(None, [0, 3, -2]).restore("a").tolist() == [
        0,
        *((np.array([3, -2], np.float32) - drawn[1:]) * np.float32(0.5)).astype(np.float16).tolist(),
    ]


def test_the_longest_distance_of_relative_indices_is_chosen_by_size() -> None:
    random = np.random.RandomState(0)
    book, chosen = np.arange(5, dtype=np.float32)[:, None], set()
    for zeros in (0.5, 0.7, 0.9, 0.97, 0.99):
        indices = np.where(random.random_sample(4000) < zeros, 2, random.randint(0, 5, 4000))
        info = TensorInfo("a", "float32", (40, 100), "coded")
        section = ilwp.arranged([book], [ilwp.CodebookTensor(info, 0, indices)], "huffman")
        (own,) = section.tensors
        if own.form == "sparse":
            chosen.add(own.longest)
        for longest in (255, 31, 7):
            other = ilwp.ArrangedTensor(info, 0, indices, "sparse", common=2, longest=longest)
            size = ilwp.ArrangedSection([book], [other], "huffman").encode([info]).length
            assert section.encode([info]).length <= size + 8
    assert len(chosen) > 1
