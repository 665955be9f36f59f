"""Entropy-constrained scalar quantization (Choi, El-Khamy, Lee 2016, "Towards the limit of network quantization").

Values become entries of one table, so that

    sum_i h_i (w_i - c_k(i))^2  +  rate * sum_i bits(k(i))

is small: h tells how much an error in a weight changes the loss, and the bits of an entry are those of an ideal code of
the entries' shares. An entry 0 is always there and stays 0, as pruned weights need it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Quantizer", "assign", "ideal_bits", "lloyd", "uniform"]

_WINDOW = 4
"""Entries on both sides of the nearest one that are tried, besides 0; farther ones cost more than their bits save."""

_PIECE = 1 << 18
"""Values that are looked at at one time."""

_STILL = 1e-4
"""Where an iteration lowers the cost by less than this share, it was the last."""

MOST_ENTRIES = 1 << 12
"""A table of more would cost more than it gains."""


@dataclass(frozen=True, eq=False)
class Quantizer:
    """A table, and which value has which entry.

    Attributes:
        entries: (k,) float32, ascending; 0 is among them.
        indices: (n,) int64.
        bits: (k,) float64, of each entry under an ideal code.
        cost: what was minimised, a value.
    """

    entries: Tensor
    indices: Tensor
    bits: Tensor
    cost: float


def ideal_bits(counts: Tensor) -> Tensor:
    """(k,) float64: minus the logarithm of each share; of an entry that does not occur, as if it did once."""
    counts = counts.double()
    return torch.log2(counts.sum().clamp(min=1)) - torch.log2(counts.clamp(min=1))


def assign(values: Tensor, weights: Tensor | None, entries: Tensor, bits: Tensor, rate: float) -> tuple[Tensor, float]:
    """The entry of each value that costs least.

    Args:
        values: (n,) float32.
        weights: (n,) float32, h; None for 1.
        entries: (k,) float32, ascending, 0 among them.
        bits: (k,).
        rate: what a bit costs.

    Returns:
        (n,) int64, and the sum of the costs. A value that is exactly 0 gets the entry 0.
    """
    zero = int((entries == 0).nonzero()[0])
    middles = ((entries[1:].double() + entries[:-1].double()) / 2).float()
    cost_of_bits = (rate * bits).float()
    found = torch.empty(len(values), dtype=torch.int64)
    total = 0.0
    offsets = range(-_WINDOW, _WINDOW + 1) if rate else (0,)
    for start in range(0, len(values), _PIECE):
        part = slice(start, start + _PIECE)
        own = values[part]
        h = None if weights is None else weights[part]
        nearest = torch.searchsorted(middles, own)
        best = torch.full_like(nearest, zero)
        least = _costs(own, h, entries, cost_of_bits, best)
        for offset in offsets:
            index = (nearest + offset).clamp(0, len(entries) - 1)
            cost = _costs(own, h, entries, cost_of_bits, index)
            better = cost < least
            best, least = torch.where(better, index, best), torch.where(better, cost, least)
        exact = own == 0
        best[exact] = zero
        found[part] = best
        total += float(torch.where(exact, cost_of_bits[zero], least).double().sum())
    return found, total


def _costs(values: Tensor, weights: Tensor | None, entries: Tensor, bits: Tensor, index: Tensor) -> Tensor:
    error = (values - entries[index]).square()
    return (error if weights is None else weights * error) + bits[index]


def _grid(values: Tensor, step: float) -> Tensor:
    """Multiples of a step that reach the values; the step is larger where they would be too many."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    step = max(step, (max(high, 0.0) - min(low, 0.0)) / (MOST_ENTRIES - 2))
    return torch.arange(min(0, round(low / step)), max(0, round(high / step)) + 1).float() * step


def _centred(values: Tensor, weights: Tensor | None, entries: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Each entry as the weighted mean of its values, and how many it has; 0 stays."""
    h = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    mass = torch.zeros(len(entries), dtype=torch.float64).index_add_(0, indices, h)
    sums = torch.zeros(len(entries), dtype=torch.float64).index_add_(0, indices, h * values.double())
    means = torch.where((mass > 0) & (entries != 0), sums / mass.clamp(min=1e-300), entries.double()).float()
    return means, torch.bincount(indices, minlength=len(entries))


def uniform(values: Tensor, weights: Tensor | None, step: float) -> Quantizer:
    """Nearest multiples of a step, whose entries are then the weighted means of their values.

    Args:
        values: (n,) float32.
        weights: (n,) float32, h; None for 1.
        step: in units of value.
    """
    entries = _grid(values, step)
    indices, _ = assign(values, None, entries, torch.zeros(len(entries)), 0.0)
    means, counts = _centred(values, weights, entries, indices)
    return _used(values, weights, means, counts, indices, 0.0)


def lloyd(
    values: Tensor, weights: Tensor | None, step: float, rate: float, most: int = 60, entries: Tensor | None = None
) -> Quantizer:
    """The Lloyd-like iteration: values to entries, entries to means, bits to shares; entries that nobody needs go.

    Args:
        values: (n,) float32.
        weights: (n,) float32, h; None for 1.
        step: of the grid that it starts from, in units of value.
        rate: what a bit costs.
        most: iterations.
        entries: to start from instead of a grid; ascending, 0 among them.
    """
    entries = _grid(values, step) if entries is None else entries
    nearest, _ = assign(values, None, entries, torch.zeros(len(entries)), 0.0)
    bits = ideal_bits(torch.bincount(nearest, minlength=len(entries)))
    before = math.inf
    for _ in range(most):
        indices, cost = assign(values, weights, entries, bits, rate)
        means, counts = _centred(values, weights, entries, indices)
        kept = (counts > 0) | (entries == 0)
        entries, bits = means[kept], ideal_bits(counts[kept])
        order = entries.argsort(stable=True)
        entries, bits = entries[order], bits[order]
        if cost >= before * (1 - _STILL):
            break
        before = cost
    indices, _ = assign(values, weights, entries, bits, rate)
    return _used(values, weights, entries, torch.bincount(indices, minlength=len(entries)), indices, rate)


def _used(
    values: Tensor, weights: Tensor | None, entries: Tensor, counts: Tensor, indices: Tensor, rate: float
) -> Quantizer:
    """Without entries that have no values, but 0."""
    kept = (counts > 0) | (entries == 0)
    place = torch.cumsum(kept, 0) - 1
    indices = place[indices]
    entries, bits = entries[kept], ideal_bits(counts[kept])
    cost = float(_costs(values, weights, entries, (rate * bits).float(), indices).double().mean()) if len(values) else 0
    return Quantizer(entries, indices, bits, cost)
