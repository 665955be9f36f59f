"""k-means of scalars: values are sorted once, and a round takes the logarithm of their number for each centre."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilwp_plugin.registry import Registry

__all__ = ["STARTS", "around_zero", "distinct_start", "kmeans"]

_MOST_ROUNDS = 300

Start = Callable[[NDArray[np.float64], int, int], NDArray[np.float64]]
"""(sorted values, number of centres, seed) -> centres, ascending."""

STARTS: Registry[Start] = Registry("k-means start")


def kmeans(values: Tensor, start: Tensor, fixed: Tensor | None = None) -> Tensor:
    """Lloyd's algorithm in one dimension, until no value changes its centre.

    Args:
        values: any shape, real, finite, at least one.
        start: (k,) centres to begin with.
        fixed: (k,) bool, the centres that stay; they get values all the same. None for no centre.

    Returns:
        (k,) float64 centres, in the order of `start`. A centre that has lost all its values stays where it was.
    """
    ordered = np.sort(values.detach().double().cpu().numpy().ravel())
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = start.detach().double().cpu().numpy().copy()
    stays = np.zeros(len(centres), bool) if fixed is None else fixed.cpu().numpy()
    before: NDArray[np.int64] | None = None
    for _ in range(_MOST_ROUNDS):
        order = np.argsort(centres, kind="stable")
        middles = (centres[order][1:] + centres[order][:-1]) / 2
        bounds = np.concatenate([[0], np.searchsorted(ordered, middles, side="right"), [len(ordered)]])
        if before is not None and np.array_equal(bounds, before):
            break
        before = bounds
        counts = np.diff(bounds)
        moves = (counts > 0) & ~stays[order]
        means = (sums[bounds[1:]] - sums[bounds[:-1]]) / np.maximum(counts, 1)
        centres[order] = np.where(moves, means, centres[order])
    return torch.from_numpy(centres)


def distinct_start(values: Tensor, count: int, start: str, seed: int = 0) -> Tensor:
    """Centres to begin with: no more than there are distinct values.

    Args:
        values: any shape, real, finite, at least one.
        count: of centres.
        start: a name of `STARTS`.
        seed: of the random one.
    """
    ordered = np.sort(values.detach().double().cpu().numpy().ravel())
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        return torch.from_numpy(distinct)
    return torch.from_numpy(STARTS[start](ordered, count, seed))


@STARTS.register("linear")
def _linear(ordered: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """Evenly between the smallest and the largest value: large ones, of which there are few, keep centres."""
    return np.linspace(ordered[0], ordered[-1], count)


@STARTS.register("density")
def _density(ordered: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """Where the distribution function has evenly spaced values."""
    return np.quantile(ordered, (np.arange(count) + 0.5) / count)


@STARTS.register("random")
def _random(ordered: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """Values drawn without replacement (Forgy)."""
    chosen = np.random.default_rng(seed).choice(len(ordered), count, replace=False)
    return np.sort(ordered[chosen])


def around_zero(values: Tensor, count: int) -> Tensor:
    """Zero, and pairs of a power of two with both signs, each half of the one before (Xu et al. 2018, their code).

    The first is the largest power of two that is not above all magnitudes.

    Args:
        values: any shape, real, finite.
        count: of centres.

    Returns:
        (count,) float64: 0, then by falling magnitude, the positive one of a pair first.
    """
    largest = float(values.detach().abs().max()) if values.numel() else 0.0
    power = 2.0 ** np.floor(np.log2(largest)) if largest > 0 else 0.0
    pairs = [sign * power / 2**i for i in range(count // 2) for sign in (1, -1)]
    return torch.tensor([0.0, *pairs][:count], dtype=torch.float64)
