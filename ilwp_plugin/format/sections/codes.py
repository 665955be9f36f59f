"""Integer codes of several layers: consecutive layers share a code table and a bitstream where that saves bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ilwp_plugin.format.coding import AUTO, Coder, Run, Segment, Symbols, fit_coder
from ilwp_plugin.format.coding.base import coder_of_id
from ilwp_plugin.format.stream import Account, ByteReader, ByteWriter
from ilwp_plugin.ledger import split_bits

__all__ = ["read_codes", "write_codes"]


def write_codes(
    writer: ByteWriter,
    accounts: Sequence[Account],
    runs: Sequence[Run],
    coder: str,
    table: str,
) -> None:
    """Write the codes of one or more layers.

    Args:
        writer: where to.
        accounts: of each layer, for its share of the payload.
        runs: the codes of each layer.
        coder: a name of `CODERS`, or AUTO.
        table: the part of the ledger that code tables belong to; a shared one is charged to the first of its layers.
    """
    start = 0
    for count in _group(runs, coder):
        layers = runs[start : start + count]
        run = _joined(layers)
        fit = fit_coder(run, coder)
        payload = fit.coder.encode(fit.model, run.joined, run.segments)
        with writer.charge(table, accounts[start][1]):
            writer.varint(count)
            writer.u8(fit.coder.id)
            writer.raw(fit.table)
            writer.varint(len(payload))
        bits = [fit.coder.bits(fit.model, layer) for layer in layers]
        writer.shared(payload, accounts[start : start + count], split_bits(bits, len(payload)))
        start += count


def read_codes(
    reader: ByteReader, accounts: Sequence[Account], segments: Sequence[Segment], table: str
) -> tuple[list[Symbols], str]:
    """The inverse of `write_codes`.

    Args:
        reader: where from.
        accounts: as written.
        segments: how many codes each layer has, and how they lie.
        table: as written.

    Returns:
        The codes of each layer, and the name of their coder, or AUTO where there are several.

    Raises:
        FormatError: no encoder could have written these bytes.
    """
    codes: list[Symbols] = []
    names = set()
    while len(codes) < len(segments):
        start = len(codes)
        with reader.charge(table, accounts[start][1]):
            count = reader.varint()
            if not 1 <= count <= len(segments) - start:
                raise reader.fail("count", f"a group of {count} layers where {len(segments) - start} are left")
            name, coder = coder_of_id(reader.u8(), reader)
            model = coder.read_table(reader)
            length = reader.varint()
        group = slice(start, start + count)
        symbols = coder.decode(model, reader.shared(length), segments[group], reader)
        pieces = np.split(symbols, np.cumsum([segment.count for segment in segments[group]])[:-1])
        reader.ledger.defer(partial(_charges, coder, model, pieces, segments[group], accounts[group], length))
        codes += pieces
        names.add(name)
    return codes, names.pop() if len(names) == 1 else AUTO


def _charges(
    coder: Coder,
    model: Any,
    codes: Sequence[Symbols],
    segments: Sequence[Segment],
    accounts: Sequence[Account],
    length: int,
) -> Iterator[tuple[str, str | None, int]]:
    """The share of each layer in a payload, which takes a histogram of its codes."""
    bits = [coder.bits(model, Run.of(c, segment)) for c, segment in zip(codes, segments, strict=True)]
    for (part, layer), share in zip(accounts, split_bits(bits, length), strict=True):
        yield part, layer, share


def _joined(runs: Sequence[Run]) -> Run:
    total = runs[0]
    for run in runs[1:]:
        total = total + run
    return total


def _group(runs: Sequence[Run], coder: str) -> list[int]:
    """Lengths of the runs of layers that share a code table: runs are merged greedily while that saves bytes.

    A table costs some 60 bytes at 8 bits, which small layers cannot afford one each.
    """

    def cost(run: Run) -> int:
        return fit_coder(run, coder).nbytes + 3

    groups = [(1, run, cost(run)) for run in runs]
    pairs = [cost(a[1] + b[1]) - a[2] - b[2] for a, b in itertools.pairwise(groups)]
    while pairs and min(pairs) < 0:
        at = pairs.index(min(pairs))
        a, b = groups[at], groups[at + 1]
        groups[at : at + 2] = [(a[0] + b[0], a[1] + b[1], a[2] + b[2] + pairs[at])]
        del pairs[at]
        for i in (at - 1, at):
            if 0 <= i < len(pairs):
                pairs[i] = cost(groups[i][1] + groups[i + 1][1]) - groups[i][2] - groups[i + 1][2]
    return [length for length, _, _ in groups]
