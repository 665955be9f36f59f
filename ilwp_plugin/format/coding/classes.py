"""ANS by classes of blocks: parts of tensors that are alike share a table, wherever they stand.

The rows of a weight, one for each output channel, differ in how their codes are spread, and so do layers. The symbols
are cut into blocks, of about a row; each block belongs to a class, and each class is coded by ANS with a table of its
own. Which class a block is best in follows from the tables, and the tables from the blocks: both are found in turn,
beginning with many classes, of which the two that are most alike are merged again and again.

Same symbols, same bytes: what decides are sums of whole numbers, the logarithms in them rounded before they are added.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.coding.ans import PRECISION, SYMBOLS_PER_BYTE, AnsCoder, AnsModel
from ilwp_plugin.format.coding.base import CODERS, WIDEST, Coder, Histogram, Run, Segment, Symbols
from ilwp_plugin.format.coding.indices import read_indices, write_indices
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["MOST_BLOCKS", "MOST_CLASSES", "Blocks", "ClassCoder", "ClassModel"]

MOST_CLASSES = 64
"""Classes of a group."""

MOST_BLOCKS = 1 << 20
"""Blocks of a group."""

_ANS = AnsCoder()

_SHORT, _USUAL, _LONG = 96, 192, 400
"""Symbols of a block: shorter rows are put together, longer ones are cut."""
_SAMPLE = 1 << 13
"""The most blocks that are looked at at one time; of more, some are taken to find the classes."""
_CELLS = 1 << 21
"""The most counts of these."""
_SPAN = 1 << 10
"""More different symbols than these are coded as one class: blocks would not tell how their symbols are spread."""
_UNIT = 16
"""Parts of a bit in which costs are counted; so all sums below are whole numbers that binary32 holds."""
_KNOWN = 1 << 15
"""Counts whose logarithms are computed once."""
_PIECE = 1 << 16
"""Symbols that are put in order at one time."""

_ROUNDS = 2
"""Times that all blocks are assigned to classes."""
_NEVER = 1 << 62
"""What no merger costs."""
_TABLE = 40
"""Bits of a table besides its levels."""
_STEP_BITS = np.array([2 * (step + 1).bit_length() for step in range(128)], np.uint8)
"""Of a difference of two levels in a table, about."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """How the symbols of a group are cut.

    Attributes:
        lengths: symbols of a block, for each run.
        classes: (blocks,) uint8; the class of each block, run after run.
        histograms: of the symbols of each class.
    """

    lengths: tuple[int, ...]
    classes: NDArray[np.uint8]
    histograms: tuple[Histogram, ...]


@dataclass(frozen=True, eq=False)
class ClassModel:
    """Tables of classes.

    Attributes:
        tables: of each class.
        blocks: of the symbols that it was fitted to; None where it was read, since they are a part of the payload.
    """

    tables: tuple[AnsModel, ...]
    blocks: Blocks | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest for all symbols."""
        return np.result_type(*(table.dtype for table in self.tables))


class ClassCoder(Coder):
    """ANS with a table for each class of blocks; see the module's docstring. `Model` is a ClassModel."""

    id = 4
    density = SYMBOLS_PER_BYTE
    learns = True

    def fit(self, run: Run) -> ClassModel:
        blocks = _blocks(run)
        return ClassModel(tuple(_ANS.fit(_only(histogram)) for histogram in blocks.histograms), blocks)

    def table(self, model: ClassModel) -> bytes:
        writer = ByteWriter()
        writer.u8(len(model.tables))
        for table in model.tables:
            writer.raw(_ANS.table(table))
        return writer.getvalue()

    def read_table(self, reader: ByteReader) -> ClassModel:
        number = reader.u8()
        if not 1 <= number <= MOST_CLASSES:
            raise reader.fail("table", f"{number} classes of blocks, expected 1 to {MOST_CLASSES}")
        tables: list[AnsModel] = []
        left = WIDEST
        for _ in range(number):
            tables.append(_ANS.read_table(reader))
            left -= len(tables[-1].levels)
            if left < 0:
                raise reader.fail("table", f"the tables of classes have more than {WIDEST:,} symbols together")
        return ClassModel(tuple(tables), None)

    def bits(self, model: ClassModel, histogram: Histogram) -> int:
        return int(histogram.entropy * int(histogram.counts.sum())) + 1

    def layer_bits(self, model: ClassModel, payload: memoryview, layers: Sequence[Run]) -> list[int]:
        segments = [segment for layer in layers for segment in layer.segments]
        _, sizes, classes = self._open(model, payload, segments, ByteReader(payload, "payload"))
        ends = np.cumsum(sizes)
        # Whole numbers of 2^-16 of a bit, so that their sum is the same in whatever pieces the symbols come.
        shares = np.concatenate([table.probabilities for table in model.tables])
        prices = np.rint((PRECISION - np.log2(shares)) * (1 << 16)).astype(np.int64)
        starts = np.cumsum([0, *(len(table.probabilities) for table in model.tables[:-1])])
        places = starts - [table.low for table in model.tables]  # of the symbol 0 in each class, if it has one
        bits, start = [], 0
        for layer in layers:
            found = 0
            for piece in layer.pieces():
                for first in range(0, len(piece), _PIECE):
                    part = piece[first : first + _PIECE]
                    labels = _labels(classes, ends, start, start + len(part))
                    found += int(prices[places[labels] + part].sum())
                    start += len(part)
            bits.append(-(-found >> 16))
        return bits

    def payload_bytes(self, model: ClassModel, run: Run) -> int:
        assert model.blocks is not None, "of a model that was fitted to these symbols"
        streams = [
            _ANS.payload_bytes(table, _only(histogram))
            for table, histogram in zip(model.tables, model.blocks.histograms, strict=True)
        ]
        writer = ByteWriter()
        _write_head(writer, model, streams)
        return len(writer) + sum(streams)

    def encode(self, model: ClassModel, symbols: Symbols, segments: Sequence[Segment]) -> bytes:
        assert model.blocks is not None, "of a model that was fitted to these symbols"
        parts: list[list[Symbols]] = [[] for _ in model.tables]
        start = 0
        for labels in _all_labels(model.blocks.classes, _sizes(model.blocks.lengths, segments)):
            order = np.argsort(labels, kind="stable")
            ends = np.cumsum(np.bincount(labels, minlength=len(parts)))[:-1]
            for own, piece in zip(parts, np.split(symbols[start + order], ends), strict=True):
                own.append(piece)
            start += len(labels)
        streams = []
        for table, own in zip(model.tables, parts, strict=True):
            joined = np.concatenate(own)
            own.clear()
            streams.append(_ANS.encode(table, joined, [Segment.flat(len(joined))]))
        writer = ByteWriter()
        _write_head(writer, model, [len(stream) for stream in streams])
        for stream in streams:
            writer.raw(stream)
        return writer.getvalue()

    def decode(
        self, model: ClassModel, payload: memoryview, segments: Sequence[Segment], reader: ByteReader
    ) -> Symbols:
        streams, sizes, classes = self._open(model, payload, segments, reader)
        sources = [
            _Source(iter([_ANS.decode(table, stream, [Segment.flat(count)], reader)]))
            for table, (stream, count) in zip(model.tables, streams, strict=True)
        ]
        symbols = np.empty(sum(segment.count for segment in segments), model.dtype)
        start = 0
        for piece in _merged(sources, classes, sizes, model.dtype):
            symbols[start : start + len(piece)] = piece
            start += len(piece)
        return symbols

    def pieces(
        self, model: ClassModel, payload: memoryview, segments: Sequence[Segment], reader: ByteReader
    ) -> Iterator[Symbols]:
        streams, sizes, classes = self._open(model, payload, segments, reader)
        sources = [
            _Source(_ANS.pieces(table, stream, [Segment.flat(count)], reader))
            for table, (stream, count) in zip(model.tables, streams, strict=True)
        ]
        yield from _merged(sources, classes, sizes, model.dtype)

    def _open(
        self, model: ClassModel, payload: memoryview, segments: Sequence[Segment], reader: ByteReader
    ) -> tuple[list[tuple[memoryview, int]], NDArray[np.int64], NDArray[np.uint8]]:
        """The stream of each class and the number of its symbols; the size and the class of each block."""
        self.bound(payload, sum(segment.count for segment in segments), reader)
        inner = ByteReader(payload, f"{reader.where}, payload of classes")
        number = len(model.tables)
        lengths, blocks = [], 0
        for segment in segments:
            lengths.append(inner.varint())
            if not 1 <= lengths[-1] <= segment.count:
                raise inner.fail("payload", f"blocks of {lengths[-1]} of {segment.count} symbols")
            blocks += -(-segment.count // lengths[-1])
        if blocks > MOST_BLOCKS:
            raise inner.fail("payload", f"{blocks:,} blocks, expected at most {MOST_BLOCKS:,}")
        sizes = _sizes(lengths, segments)
        classes = _of_places(read_indices(inner, blocks, number), number)
        counts = np.zeros(number, np.int64)
        np.add.at(counts, classes, sizes)
        if not counts.all():
            raise inner.fail("payload", f"no block is of class {int(counts.argmin())}")
        ends = [inner.varint() for _ in range(number - 1)]
        streams = [inner.raw(length) for length in ends] + [inner.raw(inner.remaining)]
        for stream, count in zip(streams, counts.tolist(), strict=True):
            _ANS.bound(stream, count, inner)
        return list(zip(streams, counts.tolist(), strict=True)), sizes, classes


def _write_head(writer: ByteWriter, model: ClassModel, lengths: Sequence[int]) -> None:
    """What stands before the streams, of these lengths in bytes."""
    assert model.blocks is not None
    for length in model.blocks.lengths:
        writer.varint(length)
    write_indices(writer, _places(model.blocks.classes, len(model.tables)), len(model.tables))
    for length in lengths[:-1]:
        writer.varint(length)


def _places(classes: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """Where each class stands in a list of all, from which it then moves to the front."""
    order, places = list(range(number)), []
    for own in classes.tolist():
        place = order.index(own)
        if place:
            order.insert(0, order.pop(place))
        places.append(place)
    return np.array(places, np.uint8)


def _of_places(places: NDArray[np.int64], number: int) -> NDArray[np.uint8]:
    """The inverse of `_places`."""
    order, classes = list(range(number)), bytearray()
    for place in places.tolist():
        if place:
            order.insert(0, order.pop(place))
        classes.append(order[0])
    return np.frombuffer(classes, np.uint8)


def _only(histogram: Histogram) -> Run:
    """A run of which nothing is known but how often each symbol occurs."""
    return Run(list, [Segment.flat(int(histogram.counts.sum()))], histogram)


def _lengths(segments: Sequence[Segment]) -> tuple[int, ...]:
    """Of the blocks of each run: about the length of a row."""
    lengths = [_length(segment) for segment in segments]
    while sum(-(-s.count // length) for s, length in zip(segments, lengths, strict=True)) > MOST_BLOCKS:
        grown = [min(2 * length, s.count) for s, length in zip(segments, lengths, strict=True)]
        if grown == lengths:
            break
        lengths = grown
    return tuple(lengths)


def _length(segment: Segment) -> int:
    row = segment.count // segment.shape[0] if len(segment.shape) > 1 else segment.count
    if row < _SHORT:
        row *= -(-_SHORT // row)
    elif row > _LONG:
        parts = [length for length in range(_SHORT, _LONG + 1) if row % length == 0]
        row = min(parts, key=lambda length: abs(length - _USUAL)) if parts else _USUAL
    return min(row, segment.count)


def _sizes(lengths: Sequence[int], segments: Sequence[Segment]) -> NDArray[np.int64]:
    """(blocks,) symbols of each block; the last one of a run has what is left."""
    counts, own = np.array([segment.count for segment in segments]), np.array(lengths, np.int64)
    blocks = -(-counts // own)
    sizes = np.repeat(own, blocks)
    sizes[np.cumsum(blocks) - 1] -= blocks * own - counts
    return sizes


def _labels(classes: NDArray[np.uint8], ends: NDArray[np.int64], start: int, stop: int) -> NDArray[np.uint8]:
    """The class of each symbol between two positions, of blocks that end where is said."""
    first, last = np.searchsorted(ends, [start, stop - 1], "right")
    own = np.minimum(ends[first : last + 1], stop)
    return np.repeat(classes[first : last + 1], np.diff(own, prepend=start))


def _all_labels(classes: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """The class of each symbol, some at a time."""
    ends = np.cumsum(sizes)
    for start in range(0, int(ends[-1]), _PIECE):
        yield _labels(classes, ends, start, min(start + _PIECE, int(ends[-1])))


class _Source:
    """The symbols of a class, as many as are asked for."""

    def __init__(self, pieces: Iterator[Symbols]) -> None:
        self._pieces = pieces
        self._left: Symbols = np.empty(0, np.int16)

    def take(self, count: int) -> list[Symbols]:
        parts: list[Symbols] = []
        while count:
            if not len(self._left):
                self._left = next(self._pieces)
            parts.append(self._left[:count])
            self._left = self._left[count:]
            count -= len(parts[-1])
        return parts

    def finish(self) -> None:
        """Lets the coder see that its payload ends as it has to."""
        for _ in self._pieces:
            raise AssertionError("symbols are left")


def _merged(
    sources: Sequence[_Source], classes: NDArray[np.uint8], sizes: NDArray[np.int64], dtype: np.dtype[Any]
) -> Iterator[Symbols]:
    """All symbols in their order, some at a time."""
    for labels in _all_labels(classes, sizes):
        counts = np.bincount(labels, minlength=len(sources)).tolist()
        parts = [part for source, count in zip(sources, counts, strict=True) for part in source.take(count)]
        piece = np.empty(len(labels), dtype)
        piece[np.argsort(labels, kind="stable")] = np.concatenate(parts)
        yield piece
    for source in sources:
        source.finish()


# --- which class a block is in


def _blocks(run: Run) -> Blocks:
    """How to cut symbols into blocks, and what these have in common."""
    lengths = _lengths(run.segments)
    sizes = _sizes(lengths, run.segments)
    symbols, low, span = run.joined, run.histogram.low, len(run.histogram.counts)
    if len(sizes) > 1 and span <= _SPAN:
        found = _found(symbols, sizes, low, span)
        if len(found) > 1:
            classes, counts = _assigned(symbols, sizes, low, found)
            if len(counts) > 1:
                return Blocks(lengths, classes, tuple(_histogram(own, low) for own in counts))
    lengths = tuple(segment.count for segment in run.segments)
    return Blocks(lengths, np.zeros(len(lengths), np.uint8), (run.histogram,))


def _histogram(counts: NDArray[np.int64], low: int) -> Histogram:
    """Without the symbols at both ends that do not occur."""
    used = np.flatnonzero(counts)
    return Histogram(low + int(used[0]), counts[used[0] : used[-1] + 1])


def _found(symbols: Symbols, sizes: NDArray[np.int64], low: int, span: int) -> NDArray[np.int64]:
    """(classes, span) how often each symbol occurs in each class, by some of the blocks; with the fewest bytes."""
    most = _together(sizes, span)
    if len(sizes) > most:
        chosen = np.diff(np.arange(len(sizes) + 1) * most // len(sizes)) > 0
        symbols, sizes = symbols[np.repeat(chosen, sizes)], sizes[chosen]
    blocks = _histograms(symbols, sizes, low, span)
    whole = blocks.sum(axis=0, dtype=np.int64)[None]
    # At first, classes of as many symbols each, by what a symbol of a block costs with the table of all.
    mean = (blocks @ _prices(whole)[0]).astype(np.int64) * _UNIT // sizes
    order = np.argsort(mean, kind="stable")
    number = min(MOST_CLASSES, len(sizes) // 4 + 1)
    classes = np.empty(len(sizes), np.int64)
    classes[order] = (np.cumsum(sizes[order]) - 1) * number // int(sizes.sum())
    counts, _ = _sums(blocks, classes, number)
    for _ in range(2):
        counts, _ = _sums(blocks, _best(blocks, counts), number)
    best: NDArray[np.int64] = whole
    least = _total(_costs(whole), np.array([len(sizes)]))
    while len(counts) > 1:
        counts, members = _sums(blocks, _best(blocks, counts), len(counts))
        for own, costs, own_members in _mergers(counts, members, len(counts) * 3 // 4):
            counts = own
            total = _total(costs, own_members)
            if total < least:
                best, least = own, total
    return best


def _assigned(
    symbols: Symbols, sizes: NDArray[np.int64], low: int, counts: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The class that each block is cheapest in, and how often each symbol then occurs in each class."""
    span = counts.shape[1]
    step = _together(sizes, span)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    for _ in range(_ROUNDS):
        classes = np.empty(len(sizes), np.uint8)
        found = np.zeros_like(counts)
        for first in range(0, len(sizes), step):
            own = sizes[first : first + step]
            blocks = _histograms(symbols[ends[first] : ends[first + len(own)]], own, low, span)
            classes[first : first + step] = best = _best(blocks, counts)
            found += _sums(blocks, best, len(counts))[0]
        used = found.any(axis=1)
        counts, classes = found[used], (np.cumsum(used) - 1).astype(np.uint8)[classes]
    return classes, counts


def _together(sizes: NDArray[np.int64], span: int) -> int:
    """Blocks that are looked at at one time: so few that binary32 holds how often each symbol occurs in all of them."""
    return max(1, min(_SAMPLE, _CELLS // span, (1 << 24) // int(sizes.max())))


def _histograms(symbols: Symbols, sizes: NDArray[np.int64], low: int, span: int) -> NDArray[np.float32]:
    """(blocks, span) how often each symbol occurs."""
    places = np.repeat(np.arange(len(sizes)) * span - low, sizes) + symbols
    return np.bincount(places, minlength=len(sizes) * span).reshape(-1, span).astype(np.float32)


def _sums(
    blocks: NDArray[np.float32], classes: NDArray[np.int64], number: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(classes, span) the blocks of each class together, and (classes,) how many there are."""
    ones = (np.arange(number)[:, None] == classes).astype(np.float32)
    return (ones @ blocks).astype(np.int64), np.bincount(classes, minlength=number)


def _prices(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """(classes, span) what a symbol costs in each class, also where it does not occur, in 16ths of a bit."""
    weights = 16 * counts + 1
    bits = np.log2(weights.sum(axis=1, keepdims=True)) - np.log2(weights)
    prices: NDArray[np.float32] = np.rint(_UNIT * bits).astype(np.float32)
    return prices


def _best(blocks: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(blocks,) the class that each is cheapest in, its index counted."""
    index = _prices(counts.sum(axis=1)[None])
    best: NDArray[np.int64] = (blocks @ _prices(counts).T + index).argmin(axis=1)
    return best


def _computed(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """c log2 c, in 16ths; and, about, the level of c in a table, in half octaves."""
    logs = np.log2(np.maximum(counts, 1))
    levels = np.where(counts > 0, 1 + np.rint(2 * logs), 0)
    return np.rint(_UNIT * counts * logs).astype(np.int64), levels.astype(np.int64)


@functools.cache
def _known() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`_computed` of the counts below `_KNOWN`: most are, and logarithms take long."""
    return _computed(np.arange(_KNOWN))


def _looked_up(counts: NDArray[np.int64], which: int) -> NDArray[np.int64]:
    """One of the two that `_computed` finds."""
    found = _known()[which][np.minimum(counts, _KNOWN - 1)]
    large = counts >= _KNOWN
    if large.any():
        found[large] = _computed(counts[large])[which]
    return found


def _times_log(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """c log2 c, in 16ths."""
    return _looked_up(counts, 0)


def _costs(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(...,) of histograms (..., span): 16ths of bits of their symbols and, about, of their table."""
    symbols = _times_log(counts.sum(axis=-1, keepdims=True))[..., 0] - _times_log(counts).sum(axis=-1)
    steps = np.abs(np.diff(_looked_up(counts, 1), axis=-1, prepend=0))
    table: NDArray[np.int64] = _STEP_BITS[steps].sum(axis=-1, dtype=np.int64) + _TABLE
    costs: NDArray[np.int64] = symbols + _UNIT * table
    return costs


def _total(costs: NDArray[np.int64], members: NDArray[np.int64]) -> int:
    """16ths of bits of all classes, and of the indices of their blocks."""
    return int(costs.sum() + _times_log(members.sum(keepdims=True))[0] - _times_log(members).sum())


def _mergers(
    counts: NDArray[np.int64], members: NDArray[np.int64], target: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """The classes, what they cost and their blocks, and again after each time that the cheapest pair was merged."""
    counts, members = counts[members > 0], members[members > 0]
    costs = _costs(counts)
    pairs = np.full((len(counts), len(counts)), _NEVER)
    for i in range(len(counts) - 1):
        pairs[i, i + 1 :] = pairs[i + 1 :, i] = _pair_costs(counts[i:], costs[i:], members[i:], 0)[1:]
    yield counts, costs, members
    while len(counts) > max(1, target):
        first, second = sorted(divmod(int(pairs.argmin()), len(counts)))
        kept = np.arange(len(counts)) != second
        counts[first] += counts[second]
        members[first] += members[second]
        counts, members, pairs = counts[kept], members[kept], pairs[kept][:, kept]
        costs = costs[kept]
        costs[first] = _costs(counts[first])
        pairs[first] = pairs[:, first] = _pair_costs(counts, costs, members, first)
        yield counts.copy(), costs, members


def _pair_costs(
    counts: NDArray[np.int64], costs: NDArray[np.int64], members: NDArray[np.int64], one: int
) -> NDArray[np.int64]:
    """(classes,) what it costs more to merge each class with one; too much for itself."""
    index = _times_log(members + members[one]) - _times_log(members) - _times_log(members[one])
    more: NDArray[np.int64] = _costs(counts + counts[one]) - costs - costs[one] - index
    more[one] = _NEVER
    return more


CODERS.register("ans-classes")(ClassCoder())
