"""Which layers share a table, and how many low bits stand apart."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format import grouping
from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.coding import AUTO, CODERS, Histogram, Run, Segment, estimated_bytes, fit_coder
from ilwp_plugin.format.coding.bits import pack_low_bits, read_low_bits
from ilwp_plugin.format.grouping import group_runs
from ilwp_plugin.format.sections.codes import Group, StoredCodes, chosen_coder, write_codes
from ilwp_plugin.format.stream import ByteReader, ByteWriter


def layers(scales: list[float], count: int = 400, seed: int = 0) -> list[Run]:
    random = np.random.default_rng(seed)
    return [Run.of(np.rint(random.laplace(0, scale, count)).astype(np.int64)) for scale in scales]


def size(runs: list[Run], sizes: list[int], coder: str = "auto") -> int:
    ends = list(itertools.accumulate(sizes))
    return sum(fit_coder(Run.join(runs[end - n : end]), coder).nbytes + 3 for n, end in zip(sizes, ends, strict=True))


def test_the_best_of_all_groupings_of_a_few() -> None:
    runs = layers([1, 1.1, 1, 20, 22, 1], 60)
    best = min(
        size(runs, [len(list(group)) for _, group in itertools.groupby(np.cumsum([0, *cuts]))])
        for cuts in itertools.product([0, 1], repeat=5)
    )
    assert size(runs, group_runs(runs, "auto")) <= best * 1.02
    assert group_runs(runs[:1], "ans") == [1]


def test_alike_layers_share_and_others_do_not() -> None:
    assert group_runs(layers([1] * 10, 50), "auto") == [10]
    assert group_runs(layers([0.5] * 3 + [60] * 3, 5000), "auto") == [3, 3]


@pytest.mark.parametrize("count", [30, 2000])
def test_many_layers_are_grouped_almost_as_well_by_estimates(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = [(0.5, 3, 25)[i // 20 % 3] for i in range(120)]
    runs = layers(scales, count)
    rough = group_runs(runs, "auto")
    monkeypatch.setattr(grouping, "_FEW", 1000)
    exact = group_runs(runs, "auto")
    assert sum(rough) == sum(exact) == len(runs)
    assert size(runs, rough) < 1.01 * size(runs, exact)


def test_ten_thousand_layers_in_seconds() -> None:
    runs = layers([8.0] * 10_000, 36)
    start = time.process_time()
    sizes = group_runs(runs, "auto")
    assert sum(sizes) == 10_000 and time.process_time() - start < 5


@given(st.lists(st.tuples(st.floats(0.3, 300), st.integers(1, 3000)), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_estimates_are_near_the_bytes(shapes: list[tuple[float, int]]) -> None:
    runs = [layers([scale], count, i)[0] for i, (scale, count) in enumerate(shapes)]
    estimates = estimated_bytes([run.histogram for run in runs])
    for run, estimate in zip(runs, estimates, strict=True):
        exact = fit_coder(run, "auto").nbytes
        assert abs(estimate - exact) < 0.15 * exact + 16


def test_low_bits_make_wide_alphabets_cheaper() -> None:
    runs = layers([3000], 5000)
    (run,) = runs
    fit, plain = fit_coder(run, "auto"), fit_coder(run, "ans", 0)
    assert fit.low_bits >= 4 and fit.nbytes < 0.92 * plain.nbytes
    assert fit_coder(layers([1.0], 5000)[0], "auto").low_bits == 0
    assert {fit_coder(run, name).low_bits for name in CODERS} == {0}, "of a coder by name as few as it needs"


def test_codes_that_no_table_could_hold() -> None:
    """As scales of batch norms have them: 24 octaves of 4,096 steps."""
    symbols = np.array([-98304, -1, 0, 7, 98304])
    for name in ("huffman", "ans", "auto"):
        fit = fit_coder(Run.of(symbols), name)
        assert fit.low_bits >= 2 and fit.payload_bytes >= 5 * fit.low_bits / 8
        assert round_trip([symbols], name)[0].tolist() == symbols.tolist()
    alone = np.array([98304] * 3)
    assert round_trip([alone], "huffman")[0].tolist() == [98304] * 3


def round_trip(codes: list[np.ndarray], coder: str, budget: Budget | None = None) -> list[np.ndarray]:
    accounts = [("grid", f"{i}") for i in range(len(codes))]
    writer = ByteWriter()
    write_codes(writer, accounts, [Run.of(own) for own in codes], coder, "grid")
    data = writer.getvalue()
    reader = ByteReader(memoryview(data), "test")
    segments = [Segment.flat(len(own)) for own in codes]
    stored = StoredCodes(reader, accounts, segments, "grid", budget or Budget(1 << 30, "test"))
    reader.finish()
    again = ByteWriter()
    write_codes(again, accounts, [Run.of(own) for own in codes], stored.coding, "grid")
    assert again.getvalue() == data and reader.ledger == writer.ledger == again.ledger
    assert len(stored) == len(codes) and sum(group.layers for group in stored.coding) == len(codes)
    return [stored.layer(i) for i in range(len(codes))]


@given(
    st.lists(st.lists(st.integers(-70000, 70000), min_size=1, max_size=30), min_size=1, max_size=6),
    st.sampled_from(["auto", "huffman", "ans", "lzma", "ans-classes"]),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_codes_round_trip(values: list[list[int]], coder: str, roomy: bool) -> None:
    codes = [np.array(own) for own in values]
    budget = Budget(1 << 30 if roomy else 0, "test", None if roomy else -(1 << 24))
    for found, expected in zip(round_trip(codes, coder, budget), codes, strict=True):
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("roomy", [True, False])
def test_shares_of_layers_that_are_coded_by_classes(roomy: bool) -> None:
    """Each layer is charged with what its own symbols take, in whatever pieces they are read."""
    random = np.random.default_rng(0)
    parts = [
        [np.rint(random.laplace(0, scale, 40_000)).astype(np.int64) for scale in scales]
        for scales in ((0.3, 20.0), (0.3,), (20.0, 20.0, 20.0), (1.0,))
    ]
    codes = [np.concatenate(own) for own in parts]
    writer, accounts = ByteWriter(), [("grid", f"{i}") for i in range(4)]
    write_codes(writer, accounts, [Run.of(own) for own in codes], (Group(4, "ans-classes", 1),), "grid")
    budget: Budget = Budget(1 << 30, "test") if roomy else Counting(0, "test")
    reader = ByteReader(writer.content(), "test")
    StoredCodes(reader, accounts, [Segment.flat(len(own)) for own in codes], "grid", budget)
    assert reader.ledger == writer.ledger
    for i, layer in enumerate(parts):
        ideal = sum((Histogram.of(own >> 1).entropy + 1) * len(own) / 8 for own in layer)
        assert abs(writer.ledger.layers[f"{i}"].grid_bytes - ideal) < 0.02 * ideal


class Counting(Budget):
    """Without room for anything to be kept."""

    def keep(self, count: int) -> bool:
        return False

    def lends(self, count: int) -> bool:
        return False


def test_dense_groups_are_decoded_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not kept is decoded again for who goes back, not for who goes on."""
    monkeypatch.setattr("ilwp_plugin.format.coding.ans._PIECE", 50)
    coder = CODERS["ans"]
    begun, pieces = [], coder.pieces

    def spy(*arguments: object):  # type: ignore[no-untyped-def]
        begun.append(1)
        return pieces(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(coder, "pieces", spy)
    codes = [own.joined for own in layers([2.0] * 8, 77)]
    writer = ByteWriter()
    accounts = [("grid", f"{i}") for i in range(8)]
    write_codes(writer, accounts, [Run.of(own) for own in codes], (Group(8, "ans", 1),), "grid")  # type: ignore[arg-type]
    reader = ByteReader(memoryview(writer.getvalue()), "test")
    stored = StoredCodes(reader, accounts, [Segment.flat(77)] * 8, "grid", Counting(0, "test"))
    for i in (0, 1, 2, 5, 7):
        assert stored.layer(i).tolist() == codes[i].tolist()
    assert len(begun) == 1
    for i in (3, 3, 1):
        assert stored.layer(i).tolist() == codes[i].tolist()
    assert len(begun) == 4
    iterator = stored.pieces(2)
    next(iterator)
    assert stored.layer(4).tolist() == codes[4].tolist(), "one that was left in the middle does not count"
    assert np.concatenate(list(stored.pieces(2))).tolist() == codes[2].tolist()


def test_a_dense_payload_that_goes_on_is_found_at_its_end() -> None:
    (run,) = layers([2.0], 500)
    fit = fit_coder(run, "ans", 0)
    payload = fit.coder.encode(fit.model, run.joined, run.segments) + b"\1"
    writer = ByteWriter()
    writer.varint(1)
    writer.u8(2)
    writer.raw(fit.table)
    writer.varint(len(payload))
    writer.raw(payload)
    reader = ByteReader(memoryview(writer.getvalue()), "test")
    stored = StoredCodes(reader, [("grid", None)], [Segment.flat(500)], "grid", Counting(0, "test"))
    with pytest.raises(FormatError, match="do not hold 500 symbols"):
        stored.layer(0)


def test_coder_of_layers_that_are_coded_anew() -> None:
    assert chosen_coder("ans") == "ans" and chosen_coder((Group(2, "huffman", 0), Group(1, "huffman", 0))) == "huffman"
    assert chosen_coder((Group(1, "huffman", 0), Group(1, "ans", 0))) == "auto"
    assert chosen_coder((Group(1, "ans", 3),)) == "auto" and chosen_coder(()) == "auto"


@given(st.lists(st.integers(-(1 << 20), 1 << 20), min_size=1, max_size=100), st.integers(1, 7), st.data())
def test_low_bits(values: list[int], width: int, data: st.DataObject) -> None:
    symbols = np.array(values)
    packed = pack_low_bits(symbols, width)
    assert len(packed) == (len(values) * width + 7) // 8
    start = data.draw(st.integers(0, len(values) - 1))
    count = data.draw(st.integers(1, len(values) - start))
    expected = [value & ((1 << width) - 1) for value in values[start : start + count]]
    assert read_low_bits(memoryview(packed), start, count, width).tolist() == expected
    histogram, cut = Histogram.of(symbols), Histogram.of(symbols >> width)
    other = histogram.without_low_bits(width)
    assert other.low == cut.low and np.array_equal(other.counts, cut.counts)


@pytest.mark.parametrize("coder", [AUTO, *CODERS])
def test_no_layers_are_no_groups(coder: str) -> None:
    """As of a chain that is an anchor alone."""
    assert group_runs([], coder) == []
