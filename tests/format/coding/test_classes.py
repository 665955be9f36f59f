"""ANS by classes of blocks: round trips, against the textbook, what it saves, and that it is always the same."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.coding import AUTO, ClassCoder, Run, Segment, classes, fit_coder
from ilwp_plugin.format.coding.classes import Blocks, ClassModel
from ilwp_plugin.format.grouping import fitted_groups
from ilwp_plugin.format.stream import ByteReader
from tests.format import textbook

CODER = ClassCoder()


def reader(data: bytes) -> ByteReader:
    return ByteReader(memoryview(data), "test")


def rows(*shape: int, seed: int = 0, spreads: tuple[float, ...] = (0.3, 3, 40)) -> Run:
    """A weight whose rows are spread differently."""
    random = np.random.RandomState(seed)
    spread = random.choice(spreads, (shape[0], *[1] * (len(shape) - 1)))
    codes = np.rint(random.standard_normal(shape) * spread).astype(np.int16)
    return Run.of(codes.ravel(), Segment(codes.size, shape))


def there_and_back(run: Run, model: ClassModel | None = None) -> tuple[ClassModel, bytes]:
    model = model or CODER.fit(run)
    table, payload = CODER.table(model), CODER.encode(model, run.joined, run.segments)
    read = CODER.read_table(reader(table))
    flat = [Segment.flat(segment.count) for segment in run.segments]  # a reader does not know how symbols lie
    decoded = CODER.decode(read, memoryview(payload), flat, reader(payload))
    assert np.array_equal(decoded, run.joined) and decoded.dtype in (np.int16, np.int32)
    pieces = list(CODER.pieces(read, memoryview(payload), flat, reader(payload)))
    assert np.array_equal(np.concatenate(pieces), run.joined) and max(map(len, pieces)) <= 1 << 16
    return model, payload


def by_the_textbook(run: Run, model: ClassModel, payload: bytes) -> list[int]:
    tables = textbook.class_tables(textbook.Bytes(CODER.table(model)))
    return textbook.class_payload(tables, payload, [segment.count for segment in run.segments])


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 250), st.floats(0.1, 3000)).map(
            lambda drawn: rows(drawn[0], drawn[1], seed=drawn[0], spreads=(0.0, drawn[2] / 9, drawn[2]))
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_round_trips(layers: list[Run]) -> None:
    run = Run.join(layers)
    model, payload = there_and_back(run)
    assert by_the_textbook(run, model, payload) == run.joined.tolist()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_blocks_and_classes(data: st.DataObject) -> None:
    """What other writers might choose."""
    counts = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    lengths = tuple(data.draw(st.integers(1, count)) for count in counts)
    segments = [Segment.flat(count) for count in counts]
    sizes = [min(length, n - at) for length, n in zip(lengths, counts, strict=True) for at in range(0, n, length)]
    most = data.draw(st.integers(1, min(64, len(sizes))))
    drawn = [*range(most), *(data.draw(st.integers(0, most - 1)) for _ in sizes[most:])]
    own = np.array(data.draw(st.permutations(drawn)), np.uint8)
    symbols = np.array([data.draw(st.integers(-300, 300)) for _ in range(sum(counts))], np.int16)
    run = Run(lambda: [symbols], segments, Run.of(symbols).histogram)
    labels = np.repeat(own, sizes)
    histograms = tuple(Run.of(symbols[labels == number]).histogram for number in range(most))
    tables = tuple(CODER.fit(Run.of(symbols[labels == number])).tables[0] for number in range(most))
    model = ClassModel(tables, Blocks(lengths, own, histograms))
    _, payload = there_and_back(run, model)
    assert by_the_textbook(run, model, payload) == symbols.tolist()


@pytest.mark.parametrize("count", [(1 << 16) - 1, 1 << 16, 300_001])
def test_long_parts_and_blocks(count: int) -> None:
    """Parts of four streams, and blocks that are longer than what is put in order at one time."""
    symbols = (np.random.RandomState(0).random_sample(2 * count) < np.repeat([0.01, 0.4], count)).astype(np.int16)
    run = Run.of(symbols)
    histograms = (Run.of(symbols[:count]).histogram, Run.of(symbols[count:]).histogram)
    tables = tuple(CODER.fit(Run.of(part)).tables[0] for part in (symbols[:count], symbols[count:]))
    there_and_back(run, ClassModel(tables, Blocks((count,), np.array([0, 1], np.uint8), histograms)))


def test_rows_that_differ_take_fewer_bytes() -> None:
    run = rows(200, 150)
    plain, by_classes = fit_coder(run, "ans"), fit_coder(run, "ans-classes")
    assert len(by_classes.model.tables) == 3 and by_classes.nbytes < 0.87 * plain.nbytes
    spread = np.repeat(np.random.RandomState(0).choice([0.3, 3, 40], 200), 150)
    ideal = sum(Run.of(run.joined[spread == own]).histogram.entropy * (spread == own).sum() / 8 for own in (0.3, 3, 40))
    payload = CODER.encode(by_classes.model, run.joined, run.segments)
    assert ideal < len(by_classes.table) + len(payload) < 1.03 * ideal
    assert abs(len(by_classes.table) + len(payload) - by_classes.nbytes) < 30


def test_symbols_that_are_alike_are_of_one_class() -> None:
    run = rows(300, 100, spreads=(5.0,))
    plain, fit = fit_coder(run, "ans"), fit_coder(run, "ans-classes")
    assert len(fit.model.tables) == 1 and plain.nbytes <= fit.nbytes < plain.nbytes + 8


def test_short_rows_stand_together_and_long_ones_are_cut() -> None:
    layers = [rows(64, 1, 3, 3), rows(4, 1600), rows(2, 1, 150), rows(2, 1201), Run.of(np.arange(70, dtype=np.int16))]
    model, _ = there_and_back(Run.join(layers))
    assert model.blocks is not None and model.blocks.lengths == (99, 200, 150, 192, 70)


def test_auto_takes_classes_where_they_are_worth_it() -> None:
    differing, alike = (
        [rows(64, 100, seed=i) for i in range(3)],
        [rows(64, 100, seed=i, spreads=(5,)) for i in range(3)],
    )
    assert [(n, fit.coder.id) for n, fit in fitted_groups(differing, AUTO)] == [(3, 4)]
    assert [(n, fit.coder.id) for n, fit in fitted_groups(alike, AUTO)] == [(3, 2)]
    assert [(n, fit.coder.id) for n, fit in fitted_groups(differing, "ans-classes")] == [(3, 4)]
    assert {fit.coder.id for _, fit in fitted_groups(differing, "ans")} == {2}


def test_classes_of_wide_symbols_leave_their_low_bits_to_auto() -> None:
    run = rows(80, 200, spreads=(30, 300, 3000))
    ((_, fit),) = fitted_groups([run], AUTO)
    assert fit.coder.id == 4 and fit.low_bits >= 4
    wide = fit_coder(run, "ans-classes")
    assert wide.low_bits == 0 and len(wide.model.tables) == 1


def test_more_blocks_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "MOST_BLOCKS", 60)
    run = Run.join([rows(100, 100), rows(5, 100)])
    model, payload = there_and_back(run)
    assert model.blocks is not None and model.blocks.lengths == (200, 200) and len(model.blocks.classes) == 53
    monkeypatch.setattr(classes, "MOST_BLOCKS", 52)
    with pytest.raises(FormatError, match="53 blocks, expected at most 52"):
        CODER.decode(model, memoryview(payload), run.segments, reader(payload))


def test_what_is_found_by_a_part_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    run = rows(400, 100)
    whole = fit_coder(run, "ans-classes").nbytes
    monkeypatch.setattr(classes, "_SAMPLE", 100)
    monkeypatch.setattr(classes, "_CELLS", 1 << 14)  # blocks are looked at in several portions, too
    model, _ = there_and_back(run)
    assert len(model.tables) == 3 and whole <= fit_coder(run, "ans-classes").nbytes < 1.01 * whole


def test_a_changed_bit_is_never_overlooked() -> None:
    run = rows(12, 96, spreads=(0.0, 30.0))
    model, payload = there_and_back(run)
    assert len(model.tables) == 2
    read, refused = CODER.read_table(reader(CODER.table(model))), 0
    for bit in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            decoded = CODER.decode(read, memoryview(changed), run.segments, reader(bytes(changed)))
        except FormatError:
            refused += 1
        else:
            assert not np.array_equal(decoded, run.joined)
    assert refused > 0.95 * 8 * len(payload)


def test_sums_are_whole_numbers_so_that_their_order_does_not_matter() -> None:
    """Prices are whole, and what is added up is far below what binary32 holds exactly."""
    counts = np.array([[0, 1, 5, 1 << 24], [3, 3, 3, 3]])
    prices = classes._prices(counts)
    assert np.array_equal(prices, np.rint(prices)) and float(prices.max()) * (1 << 14) < 1 << 24
    assert prices[1].tolist() == [32.0] * 4


SCRIPT = """
import hashlib, numpy as np
from tests.format.coding.test_classes import CODER, rows
run = rows(300, 120, spreads=(0.5, 1, 2, 4, 8, 16, 32))
model = CODER.fit(run)
print(len(model.tables), hashlib.sha256(CODER.table(model) + CODER.encode(model, run.joined, run.segments)).hexdigest())
"""


@pytest.mark.parametrize("setting", [{"OPENBLAS_CORETYPE": "Nehalem"}, {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"}])
def test_the_same_bytes_on_other_instruction_sets(setting: dict[str, str]) -> None:
    found = set()
    for own in ({}, setting):
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1 and int(found.pop().split()[0]) > 4


@given(st.lists(st.integers(0, 6), max_size=50))
def test_places(drawn: list[int]) -> None:
    own = np.array(drawn, np.uint8)
    places = classes._places(own, 7)
    assert np.array_equal(classes._of_places(places.astype(np.int64), 7), own)
    assert all(place == 0 for place, (a, b) in zip(places[1:], itertools.pairwise(drawn), strict=True) if a == b)
