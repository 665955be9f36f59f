"""Integer codes of several layers: consecutive layers share a code table and a bitstream where that saves bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ilwp_plugin.coding import AUTO, CODERS, Coder, Histogram, Symbols, coder_of_id, fit_coder
from ilwp_plugin.ledger import split_bits
from ilwp_plugin.stream import Account, ByteReader, ByteWriter

__all__ = ["read_codes", "write_codes"]


def write_codes(
    writer: ByteWriter,
    accounts: Sequence[Account],
    codes: Sequence[Symbols],
    coder: str,
    table: str = "table",
) -> None:
    """Write the codes of one or more layers.

    Args:
        writer: where to.
        accounts: of each layer, for its share of the payload.
        codes: of each layer, 1-D, not empty.
        coder: a name of `CODERS`, or AUTO.
        table: the part of the ledger that code tables belong to; a shared one is charged to the first of its layers.
    """
    histograms = [Histogram.of(c) for c in codes]
    start = 0
    for count in _group(histograms, coder):
        group = slice(start, start + count)
        fit = fit_coder(_sum(histograms[group]), coder)
        payload = fit.coder.encode(fit.model, np.concatenate(codes[group]))
        with writer.charge(table, accounts[start][1]):
            writer.varint(count)
            writer.u8(fit.coder.id)
            writer.raw(fit.table)
            writer.varint(len(payload))
        bits = [fit.coder.bits(fit.model, histogram) for histogram in histograms[group]]
        writer.shared(payload, accounts[group], split_bits(bits, len(payload)))
        start += count


def read_codes(
    reader: ByteReader, accounts: Sequence[Account], sizes: Sequence[int], table: str = "table"
) -> tuple[list[Symbols], str]:
    """The inverse of `write_codes`.

    Args:
        reader: where from.
        accounts: as written.
        sizes: number of codes of each layer.
        table: as written.

    Returns:
        The codes of each layer, and the name of their coder, or AUTO where there are several.

    Raises:
        FormatError: no encoder could have written these bytes.
    """
    codes: list[Symbols] = []
    names = set()
    while len(codes) < len(sizes):
        start = len(codes)
        with reader.charge(table, accounts[start][1]):
            count = reader.varint()
            if not 1 <= count <= len(sizes) - start:
                raise reader.fail(f"a group of {count} layers where {len(sizes) - start} are left")
            coder = coder_of_id(reader.u8())
            model = coder.read_table(reader)
            length = reader.varint()
        group = slice(start, start + count)
        symbols = coder.decode(model, reader.shared(length), sum(sizes[group]), reader)
        pieces = np.split(symbols, np.cumsum(sizes[group])[:-1])
        reader.ledger.defer(partial(_charges, coder, model, pieces, accounts[group], length))
        codes += pieces
        names.add(next(name for name in CODERS if CODERS[name] is coder))
    return codes, names.pop() if len(names) == 1 else AUTO


def _charges(
    coder: Coder, model: Any, codes: Sequence[Symbols], accounts: Sequence[Account], length: int
) -> Iterator[tuple[str, str | None, int]]:
    """The share of each layer in a payload, which takes a histogram of its codes."""
    shares = split_bits([coder.bits(model, Histogram.of(c)) for c in codes], length)
    for (part, layer), share in zip(accounts, shares, strict=True):
        yield part, layer, share


def _sum(histograms: Sequence[Histogram]) -> Histogram:
    total = histograms[0]
    for histogram in histograms[1:]:
        total = total + histogram
    return total


def _group(histograms: Sequence[Histogram], coder: str) -> list[int]:
    """Lengths of the runs of layers that share a code table: runs are merged greedily while that saves bytes.

    A table costs some 60 bytes at 8 bits, which small layers cannot afford one each.
    """

    def cost(histogram: Histogram) -> int:
        return fit_coder(histogram, coder).nbytes + 3

    runs = [(1, histogram, cost(histogram)) for histogram in histograms]
    pairs = [cost(a[1] + b[1]) - a[2] - b[2] for a, b in itertools.pairwise(runs)]
    while pairs and min(pairs) < 0:
        at = pairs.index(min(pairs))
        a, b = runs[at], runs[at + 1]
        runs[at : at + 2] = [(a[0] + b[0], a[1] + b[1], a[2] + b[2] + pairs[at])]
        del pairs[at]
        for i in (at - 1, at):
            if 0 <= i < len(pairs):
                pairs[i] = cost(runs[i][1] + runs[i + 1][1]) - runs[i][2] - runs[i + 1][2]
    return [length for length, _, _ in runs]
