"""Integer codes of several layers: consecutive layers share a code table and a bitstream where that saves bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.coding import AUTO, CODERS, Coder, Fit, Run, Segment, Symbols, fit_coder
from ilwp_plugin.format.coding.base import coder_of_id, smallest_dtype
from ilwp_plugin.format.coding.bits import pack_low_bits, read_low_bits
from ilwp_plugin.format.grouping import fitted_groups
from ilwp_plugin.format.stream import Account, ByteReader, ByteWriter
from ilwp_plugin.ledger import split_bits

__all__ = ["SMALLEST", "Coding", "Group", "StoredCodes", "chosen_coder", "smallest", "write_codes"]


@dataclass(frozen=True)
class Group:
    """How consecutive layers are coded together.

    Attributes:
        layers: how many.
        coder: name of the coder.
        low_bits: how many low bits of each code are stored as they are.
    """

    layers: int
    coder: str
    low_bits: int


Coding = str | tuple[Group, ...]
"""How layers are coded: the name of a coder, AUTO, or the groups in which they stand in a file that was read."""


Way = TypeVar("Way")

SMALLEST = "smallest"
"""For a section that holds bytes: groups by AUTO, or an LZMA stream for like bytes of all tensors, whichever has fewer
bytes. Strings of bytes that come again are found by the latter alone, and small tensors need no tables of their own."""


def smallest(ways: Sequence[Way], write: Callable[[ByteWriter, Way], None]) -> Way:
    """The first of some ways that takes the fewest bytes; nothing is written where there is only one."""
    if len(ways) == 1:
        return ways[0]
    sizes = []
    for way in ways:
        write(trial := ByteWriter(), way)
        sizes.append(len(trial.getvalue()))
    return ways[sizes.index(min(sizes))]


def chosen_coder(coding: Coding) -> str:
    """For layers that are to be coded anew: the coder's name, or AUTO."""
    if isinstance(coding, str):
        return coding
    names = {group.coder for group in coding if not group.low_bits} | {AUTO for group in coding if group.low_bits}
    return names.pop() if len(names) == 1 else AUTO


def write_codes(
    writer: ByteWriter, accounts: Sequence[Account], runs: Sequence[Run], coding: Coding, table: str
) -> None:
    """Write the codes of one or more layers.

    Args:
        writer: where to.
        accounts: of each layer, for its share of the payload.
        runs: the codes of each layer.
        coding: how; groups have to have as many layers as there are.
        table: the part of the ledger that code tables belong to; a shared one is charged to the first of its layers.
    """
    start = 0
    for count, fit in fitted_groups(runs, coding) if isinstance(coding, str) else _fits(runs, coding):
        layers = runs[start : start + count]
        run = Run.join(layers)
        symbols = run.joined
        payload = fit.coder.encode(fit.model, symbols >> fit.low_bits if fit.low_bits else symbols, run.segments)
        with writer.charge(table, accounts[start][1]):
            writer.varint(count)
            writer.u8(fit.coder.id | fit.low_bits << _CODER_BITS)
            writer.raw(fit.table)
            writer.varint(len(payload))
        low = pack_low_bits(symbols, fit.low_bits) if fit.low_bits else b""
        shares = _shares(fit, memoryview(payload), layers, len(payload) + len(low))
        writer.shared(payload + low, accounts[start : start + count], shares)
        start += count


def _fits(runs: Sequence[Run], groups: Sequence[Group]) -> Iterator[tuple[int, Fit]]:
    """Of groups as they stood in a file."""
    start = 0
    for group in groups:
        run = Run.join(runs[start : start + group.layers])
        yield group.layers, fit_coder(run, group.coder, group.low_bits)
        start += group.layers


def _shares(fit: Fit, payload: memoryview, layers: Sequence[Run], nbytes: int) -> list[int]:
    """The bytes that each layer takes of a payload and its low bits."""
    bits = fit.layer_bits(payload, layers)
    if fit.coder.learns:
        total = sum(bits)
        bits = [8 * nbytes * own // total for own in bits]
    return split_bits(bits, nbytes)


_CHUNK = 1 << 16
"""Symbols that get their low bits at one time."""

_TOGETHER = 1 << 25
"""Symbols of a group that are decoded together although there is no room to keep them."""

_CODER_BITS = 5
"""Of the byte that names the coder; the others are the number of low bits."""


class _Group:
    """Layers that share a code table and a payload.

    Args:
        coder: the coder.
        table: the stored form of its model, which is read again when it is needed.
        payload: the codes, without their low bits.
        low_bits: how many of these there are.
        low: all of them, as they are.
        segments: of each layer.
        where: in words.
    """

    def __init__(
        self,
        coder: Coder,
        table: memoryview,
        payload: memoryview,
        low_bits: int,
        low: memoryview,
        segments: Sequence[Segment],
        where: str,
    ) -> None:
        self.coder, self.low_bits, self.segments = coder, low_bits, segments
        self._table, self._payload, self._low, self._where = table, payload, low, where
        self._starts = list(accumulate((segment.count for segment in segments), initial=0))
        self._symbols: Symbols | None = None
        self._cursor: tuple[int, Iterator[Symbols], Symbols] | None = None

    def shares(self, layers: Sequence[Run]) -> list[int]:
        """The bytes of each layer."""
        fit = Fit(self.coder, self._model(), b"", self.low_bits, 0)
        return _shares(fit, self._payload, layers, len(self._payload) + len(self._low))

    def _model(self) -> Any:
        return self.coder.read_table(ByteReader(self._table, self._where))

    def kept(self, budget: Budget) -> Symbols | None:
        """All symbols, decoded, where there is room to keep them."""
        if self._symbols is None and budget.keep(4 * self._starts[-1]):  # at most: most symbols take two bytes
            self._symbols = np.concatenate(list(self._at_once()))
        return self._symbols

    def _at_once(self) -> Iterator[Symbols]:
        """All symbols, decoded together, which is quicker; the low bits of some at a time."""
        reader = ByteReader(self._payload, self._where)
        symbols = self.coder.decode(self._model(), self._payload, self.segments, reader)
        if not self.low_bits:
            yield symbols
        else:
            yield from (self._whole(symbols[i : i + _CHUNK], i) for i in range(0, len(symbols), _CHUNK))

    def layer(self, number: int, budget: Budget) -> Symbols:
        """The symbols of a layer."""
        symbols = self.kept(budget)
        if symbols is None:
            return np.concatenate(list(self.pieces(number, budget)))
        return symbols[self._starts[number] : self._starts[number + 1]]

    def pieces(self, number: int, budget: Budget) -> Iterator[Symbols]:
        """The symbols of a layer, some at a time.

        Where they are not kept, layers that are asked for in order are decoded once; going back begins anew.
        """
        symbols = self.kept(budget)
        if symbols is not None:
            yield symbols[self._starts[number] : self._starts[number + 1]]
            return
        start, stop = self._starts[number], self._starts[number + 1]
        at, source, left = self._cursor or (0, self._decoded(budget), _NOTHING)
        self._cursor = None
        if at > start:
            at, source, left = 0, self._decoded(budget), _NOTHING
        while at < stop:
            if not len(left):
                left = next(source)
            piece, left = left[: (start if at < start else stop) - at], left[(start if at < start else stop) - at :]
            if at >= start:
                yield piece
            at += len(piece)
        if stop == self._starts[-1]:
            for _ in source:  # lets the coder see that its payload ends as it has to
                raise AssertionError("symbols are left")
        else:
            self._cursor = at, source, left

    def _decoded(self, budget: Budget) -> Iterator[Symbols]:
        if self._starts[-1] <= _TOGETHER and budget.lends(4 * self._starts[-1]):
            yield from self._at_once()
            return
        at = 0
        reader = ByteReader(self._payload, self._where)
        for piece in self.coder.pieces(self._model(), self._payload, self.segments, reader):
            yield self._whole(piece, at) if self.low_bits else piece
            at += len(piece)

    def _whole(self, symbols: Symbols, start: int) -> Symbols:
        """Symbols, from a position on, with their low bits; in the smaller of int16 and int32 that holds them."""
        low = read_low_bits(self._low, start, len(symbols), self.low_bits).astype(np.int32)
        whole = (symbols.astype(np.int32) << self.low_bits) | low
        return whole.astype(smallest_dtype(int(whole.min()), int(whole.max())))


class StoredCodes:
    """The codes of several layers as they stand in a file: found by reading the tables, decoded when they are needed.

    Args:
        reader: where from; stands behind the codes afterwards.
        accounts: as written.
        segments: how many codes each layer has, and how they lie.
        table: as written.
        budget: for codes that are kept.

    Raises:
        FormatError: no encoder could have written these bytes; payloads are decoded later, and may raise then.
    """

    def __init__(
        self, reader: ByteReader, accounts: Sequence[Account], segments: Sequence[Segment], table: str, budget: Budget
    ) -> None:
        self._segments, self._accounts, self._budget = segments, accounts, budget
        self._groups: list[_Group] = []
        self._home: list[tuple[_Group, int]] = []  # of each layer its group, and its number there
        while len(self._home) < len(segments):
            self._read_group(reader, table)
        reader.ledger.defer(self._charges)

    def _read_group(self, reader: ByteReader, table: str) -> None:
        start = len(self._home)
        with reader.charge(table, self._accounts[start][1]):
            count = reader.varint()
            if not 1 <= count <= len(self._segments) - start:
                left = len(self._segments) - start
                raise reader.fail("count", f"a group of {count} layers where {left} are left")
            code = reader.u8()
            coder, low_bits = coder_of_id(code & (1 << _CODER_BITS) - 1, reader), code >> _CODER_BITS
            rest = reader.peek(reader.remaining)
            coder.read_table(reader)
            own = rest[: len(rest) - reader.remaining]
            length = reader.varint()
        where = f"{reader.where}, byte {reader.position}"
        segments = self._segments[start : start + count]
        total = sum(segment.count for segment in segments)
        payload = reader.shared(length)
        coder.bound(payload, total, reader)
        low = reader.shared((total * low_bits + 7) // 8)
        if total * low_bits % 8 and low[-1] & ((1 << -total * low_bits % 8) - 1):
            raise reader.fail("padding", "the padding after the low bits is not zero")
        group = _Group(coder, own, payload, low_bits, low, segments, where)
        self._home += [(group, i) for i in range(count)]
        self._groups.append(group)

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def coding(self) -> Coding:
        """The groups."""
        names = {CODERS[name].id: name for name in CODERS}
        return tuple(Group(len(g.segments), names[g.coder.id], g.low_bits) for g in self._groups)

    def layer(self, number: int) -> Symbols:
        """The codes of a layer: 1-D, not to be changed."""
        group, place = self._home[number]
        return group.layer(place, self._budget)

    def pieces(self, number: int) -> Iterator[Symbols]:
        """The codes of a layer, some at a time; asked for in order, all layers are decoded once."""
        group, place = self._home[number]
        return group.pieces(place, self._budget)

    def _charges(self) -> Iterator[tuple[str, str | None, int]]:
        """The share of each layer in the payloads, which takes a histogram of its codes."""
        number = 0
        for group in self._groups:
            layers = range(number, number + len(group.segments))
            runs = [Run(partial(self.pieces, i), [self._segments[i]]) for i in layers]
            for i, share in zip(layers, group.shares(runs), strict=True):
                part, layer = self._accounts[i]
                yield part, layer, share
            number += len(group.segments)


_NOTHING: Symbols = np.empty(0, np.int16)
