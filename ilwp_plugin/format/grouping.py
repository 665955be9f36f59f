"""Which consecutive layers share a code table: runs are merged while that saves bytes.

A table costs some 60 bytes at 8 bits, which small layers cannot afford one each. Merging the best pair again and again
takes a fit for each layer and each merger; where there are many layers, bytes are estimated first, for all pairs at
once. In the end, many layers may be one group by classes of blocks instead, which layers share without being alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.coding import (
    AUTO,
    CODERS,
    Fit,
    Histogram,
    Run,
    best_low_bits,
    estimated_bytes,
    fit_coder,
)
from ilwp_plugin.format.coding.classes import MOST_BLOCKS

__all__ = ["fitted_groups", "group_runs"]

_HEAD = 3
"""Bytes of a group besides its table and payload: number of layers, coder, length."""

_FEW = 48
"""So many runs are merged by fitting coders to them."""

_MOST = 1 << 22
"""Symbols of a group of several layers: a table costs nothing beside more of them, and a tensor is decoded sooner."""

_CELLS = 1 << 20
"""Counts that are looked at at one time."""


_CLASSES = "ans-classes"
_MANY = 1 << 12
"""So many symbols may be worth several tables."""
_WORTH = 998
"""Thousandths of the bytes by other coders that classes may take: they are slower to decode."""


def fitted_groups(runs: Sequence[Run], coder: str) -> list[tuple[int, Fit]]:
    """How many consecutive runs go into each group, and what codes them.

    Args:
        runs: the codes of each layer.
        coder: a name of `CODERS`, or AUTO.
    """
    found: list[tuple[int, Fit]] = []
    for part in _parts(runs):
        groups, start = [], 0
        for count in group_runs(part, coder):
            groups.append((count, fit_coder(Run.join(part[start : start + count]), coder)))
            start += count
        if coder == AUTO and sum(run.count for run in part) >= _MANY:
            whole = Run.join(part)
            fit = fit_coder(whole, _CLASSES, best_low_bits(whole.histogram))
            if 1000 * (fit.nbytes + _HEAD) < _WORTH * sum(own.nbytes + _HEAD for _, own in groups):
                groups = [(len(part), fit)]
        found += groups
    return found


def group_runs(runs: Sequence[Run], coder: str) -> list[int]:
    """How many consecutive runs go into each group.

    Args:
        runs: the codes of each layer.
        coder: a name of `CODERS`, or AUTO.
    """
    found: list[int] = []
    together = coder != AUTO and CODERS[coder].learns
    for part in _parts(runs):
        found += [len(part)] if together else _grouped(part, coder)
    return found


def _parts(runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
    """Consecutive runs of at most _MOST symbols, or single ones: of a group all symbols are in memory at one time.

    They are no more than a group by classes may have blocks.
    """
    start, count = 0, 0
    for number, run in enumerate(runs):
        own = sum(segment.count for segment in run.segments)
        if number > start and (count + own > _MOST or number - start == MOST_BLOCKS):
            yield runs[start:number]
            start, count = number, 0
        count += own
    if start < len(runs):
        yield runs[start:]


def _grouped(runs: Sequence[Run], coder: str) -> list[int]:
    sizes = [1] * len(runs)
    if len(runs) > _FEW:
        sizes = _by_estimates([run.histogram for run in runs])
    if len(sizes) <= _FEW:
        ends = np.cumsum(sizes)
        merged = [Run.join(runs[end - size : end]) for end, size in zip(ends.tolist(), sizes, strict=True)]
        counts = _by_fits(merged, coder)
        ends = np.cumsum(counts)
        sizes = [sum(sizes[end - count : end]) for end, count in zip(ends.tolist(), counts, strict=True)]
    return sizes


def _by_fits(runs: list[Run], coder: str) -> list[int]:
    """The pair that saves most is merged, until none saves anything."""

    def cost(run: Run) -> float:
        if len(run.segments) > 1 and run.count > _MOST:
            return math.inf
        return fit_coder(run, coder).nbytes + _HEAD

    sizes, costs = [1] * len(runs), [cost(run) for run in runs]
    pairs = [Run.join(runs[i : i + 2]) for i in range(len(runs) - 1)]
    joint = [cost(pair) for pair in pairs]
    while joint:
        gains = [joint[i] - costs[i] - costs[i + 1] for i in range(len(joint))]
        at = gains.index(min(gains))
        if gains[at] >= 0:
            break
        runs[at : at + 2], costs[at : at + 2] = [pairs[at]], [joint[at]]
        sizes[at : at + 2] = [sizes[at] + sizes[at + 1]]
        del pairs[at], joint[at]
        for i in (at - 1, at):
            if 0 <= i < len(pairs):
                pairs[i] = Run.join(runs[i : i + 2])
                joint[i] = cost(pairs[i])
    return sizes


def _by_estimates(histograms: list[Histogram]) -> list[int]:
    """In rounds: of neighbouring pairs that save bytes, those that save more than the pairs beside them are merged."""
    sizes, costs = [1] * len(histograms), _estimates(histograms)
    pairs = [Histogram.total(histograms[i : i + 2]) for i in range(len(histograms) - 1)]
    joint = _estimates(pairs, _MOST)
    while True:
        gains = joint - costs[:-1] - costs[1:]
        beside = np.concatenate([[np.inf], gains, [np.inf]])
        merged = (gains < 0) & (gains < beside[:-2]) & (gains <= beside[2:])
        if not merged.any():
            return sizes
        kept = np.append(True, ~merged)  # the second run of a pair goes into the first
        numbers = np.flatnonzero(kept).tolist()
        histograms = [pairs[i] if i < len(pairs) and merged[i] else histograms[i] for i in numbers]
        costs = np.where(np.append(merged, False), np.append(joint, 0), costs)[kept]
        sizes = np.add.reduceat(sizes, numbers).tolist()
        # A pair of two runs that stayed as they were keeps its estimate.
        new = np.append(merged, False)[kept]
        stale = np.flatnonzero(new[:-1] | new[1:]).tolist()
        pairs, joint = [pairs[i - 1] for i in numbers[1:]], joint[np.array(numbers[1:], np.int64) - 1]
        for i in stale:
            pairs[i] = Histogram.total(histograms[i : i + 2])
        joint[stale] = _estimates([pairs[i] for i in stale], _MOST)


def _estimates(histograms: Sequence[Histogram], most: float = math.inf) -> NDArray[np.float64]:
    """About the bytes of a group with each histogram, infinitely many of more symbols than `most`.

    As many as fit are looked at together.
    """
    found: list[NDArray[np.float64]] = []
    start = 0
    while start < len(histograms):
        stop, span = start, 0
        while stop < len(histograms):
            span = max(span, len(histograms[stop].counts))
            if stop > start and (stop + 1 - start) * span > _CELLS:
                break
            stop += 1
        found.append(estimated_bytes(histograms[start:stop]))
        start = stop
    estimates = np.concatenate(found) if found else np.empty(0)
    if most < math.inf:
        estimates[[int(histogram.counts.sum()) > most for histogram in histograms]] = math.inf
    return estimates
