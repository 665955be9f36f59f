"""Weight fixing networks (Subia-Waud, Dasmahapatra 2022): few values for a whole network, most of them cheap.

Weights are fixed in rounds. Candidates are as far apart as the relative distance that is allowed, and sums of few
powers of two. The most popular candidate takes the weights that are nearest to it, as long as their mean relative
distance is small enough; then the next one, until enough weights are fixed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["candidates", "fix", "powers_of_two", "pull", "relative_distance"]

SMALLEST = 2.0**-7
"""The least magnitude of a candidate besides 0."""

_MOST_TERMS = 8


def powers_of_two(value: float, distance: float) -> tuple[float, int]:
    """A value as a sum of signed powers of two, and of how many: one more while the relative error is too large."""
    total, terms = 0.0, 0
    while value and abs(value - total) / abs(value) >= distance and terms < _MOST_TERMS:
        rest = value - total
        exponent = round(math.log2(abs(rest)))
        power = min((2.0**e for e in (exponent - 1, exponent, exponent + 1)), key=lambda p: abs(abs(rest) - p))
        total, terms = total + math.copysign(power, rest), terms + 1
    return total, terms


def candidates(largest: float, distance: float, smallest: float = SMALLEST) -> Tensor:
    """Values that weights may be fixed to, ascending, float32; 0 among them.

    Each is `(1 + distance) / (1 - distance)` times the one before, so that no weight between is farther than the
    distance from one of them, before they are rounded to sums of powers of two.

    Args:
        largest: magnitude of a weight.
        distance: relative.
        smallest: the least magnitude besides 0.
    """
    value, found = smallest, {0.0}
    while True:
        rounded, _ = powers_of_two(value, distance)
        found |= {rounded, -rounded}
        if value >= largest:
            return torch.tensor(sorted(found), dtype=torch.float32)
        value *= (1 + distance) / (1 - distance)


def relative_distance(weights: Tensor, value: float) -> Tensor:
    """|w - c| / |w|; to a candidate of 0 it is that to the smallest one, see `fix`."""
    return (weights - value).abs() / weights.abs().clamp(min=1e-30)


def fix(weights: Tensor, table: Tensor, count: int, distance: float) -> Tensor:
    """Choose weights and what each becomes.

    What is nearer to 0 than to any other candidate becomes 0, and first of all: its relative distance says nothing.

    Args:
        weights: (n,) float32, those that are not fixed yet.
        table: candidates, ascending.
        count: how many are to be fixed at least.
        distance: the largest mean relative distance of the weights that a candidate takes at one time.

    Returns:
        (n,) int64: places in the table, -1 for what stays free.
    """
    found = torch.full((len(weights),), -1, dtype=torch.int64)
    zero = int((table == 0).nonzero()[0])
    middles = (table[1:] + table[:-1]) / 2
    small = torch.searchsorted(middles, weights) == zero
    found[small] = zero
    order, rank = torch.sort(weights)
    free = ~small[rank]
    left = count - int(small.sum())
    others = torch.arange(len(table)) != zero
    while left > 0 and bool(free.any()):
        own = order[free]
        closest = torch.searchsorted(middles, own)
        popular = torch.bincount(closest, minlength=len(table)) * others
        best = int(popular.argmax())
        places = free.nonzero()[:, 0]
        apart = relative_distance(own, float(table[best]))
        nearest = apart.argsort(stable=True)
        means = torch.cumsum(apart[nearest].double(), 0) / torch.arange(1, len(own) + 1)
        # Running means of sorted distances never fall, so that those that are small enough come first.
        taken = int((means <= distance).sum())
        if not taken:  # rounding has left a gap: for those that have no nearer candidate this one has to do
            nearest = nearest[closest[nearest] == best]
            taken = len(nearest)
        chosen = places[nearest[: min(taken, left)]]
        found[rank[chosen]] = best
        free[chosen] = False
        left -= len(chosen)
    return found


def pull(weights: Tensor, table: Tensor) -> Tensor:
    """The mean distance of weights to their candidates, weighted so that the nearest counts most; a scalar.

    Of each weight the two candidates around it count: a softmin of the relative distances weighs them. Its gradient
    goes to the weights.

    Args:
        weights: (n,) those that are not fixed yet.
        table: candidates, ascending.
    """
    if not len(weights):
        return weights.sum()
    table = table.to(weights.device, weights.dtype)
    above = torch.searchsorted(table, weights.detach()).clamp(1, len(table) - 1)
    size = weights.detach().abs().clamp(min=SMALLEST)
    apart = torch.stack([(weights - table[above - 1]).abs() / size, (weights - table[above]).abs() / size])
    return (torch.softmax(-apart, dim=0) * apart).sum(dim=0).mean()
