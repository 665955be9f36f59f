"""Weight fixing: candidates by their definition, rounds against a slow version."""

import math

import pytest
import torch
from torch import Tensor

from ilwp_plugin.method.weight_fixing import SMALLEST, candidates, fix, powers_of_two, pull


@pytest.mark.parametrize("distance", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("value", [1.0, -0.3, 0.7071, 1e-3, 5.5, -0.0078125, 2 / 3])
def test_powers_of_two(value: float, distance: float) -> None:
    total, terms = powers_of_two(value, distance)
    assert abs(total - value) < distance * abs(value)
    grid = [sign * 2.0**e for e in range(-24, 5) for sign in (1, -1)]
    if terms > 1:
        assert min(abs(value - power) for power in grid) >= distance * abs(value), "one power would have done"
    if terms == 2:
        assert any(math.isclose(total, a + b) for a in grid for b in grid)


@pytest.mark.parametrize("distance", [0.05, 0.1, 0.2])
def test_candidates(distance: float) -> None:
    table = candidates(0.8, distance)
    assert torch.equal(table, -table.flip(0)) and bool((table.diff() > 0).all()) and 0.0 in table.tolist()
    weights = torch.linspace(SMALLEST, 0.8, 2000)
    nearest = (weights[:, None] - table).abs().min(dim=1).values / weights
    assert float(nearest.max()) < 2.2 * distance, "the distance, and that of rounding to powers of two"
    ratios = table[table > 0][1:] / table[table > 0][:-1]
    assert float(ratios.median()) == pytest.approx((1 + distance) / (1 - distance), rel=0.25)


def slow_fix(weights: list[float], table: list[float], count: int, distance: float) -> list[int]:
    """The greedy choice, one weight at a time."""
    zero = table.index(0.0)

    def nearest(w: float) -> int:
        return min(range(len(table)), key=lambda k: abs(w - table[k]))

    found = [zero if nearest(w) == zero else -1 for w in weights]
    while sum(i >= 0 for i in found) < count and -1 in found:
        free = [i for i, k in enumerate(found) if k < 0]
        counts = [sum(nearest(weights[i]) == k for i in free) for k in range(len(table))]
        best = max(range(len(table)), key=lambda k: (counts[k], -k))
        order = sorted(free, key=lambda i: abs(weights[i] - table[best]) / abs(weights[i]))
        taken, total = [], 0.0
        for i in order:
            total += abs(weights[i] - table[best]) / abs(weights[i])
            if total / (len(taken) + 1) > distance:
                break
            taken.append(i)
        taken = taken or [i for i in order if nearest(weights[i]) == best]
        for i in taken[: count - sum(k >= 0 for k in found)]:
            found[i] = best
    return found


def some(n: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, generator=generator) * 0.1 * torch.rand(n, generator=generator)


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_a_round_against_a_slow_version(share: float) -> None:
    weights = some()
    table = candidates(float(weights.abs().max()), 0.15)
    count = round(share * len(weights))
    found = fix(weights, table, count, 0.15)
    assert found.tolist() == slow_fix(weights.tolist(), table.tolist(), count, 0.15)
    assert int((found >= 0).sum()) >= count
    if share == 1.0:
        assert bool((found >= 0).all())


def test_popular_values_take_most() -> None:
    """In few rounds a network has fewer values than candidates."""
    weights = some(20_000)
    table = candidates(float(weights.abs().max()), 0.05)
    found = fix(weights, table, len(weights), 0.05)
    own = weights[found != int((table == 0).nonzero()[0])]
    apart = (own - table[found[found != int((table == 0).nonzero()[0])]]).abs() / own.abs()
    assert float(apart.mean()) < 0.1
    assert len(found.unique()) < len(table)


def test_pull() -> None:
    weights = torch.tensor([0.3, -0.07, 0.26, 0.0], dtype=torch.float64, requires_grad=True)
    table = torch.tensor([-0.25, -0.0625, 0.0, 0.25, 0.5])
    value = pull(weights, table)
    expected = 0.0
    for w, (low, high) in zip(
        weights.tolist(), [(0.25, 0.5), (-0.25, -0.0625), (0.25, 0.5), (-0.0625, 0)], strict=True
    ):
        size = max(abs(w), SMALLEST)
        apart = [abs(w - low) / size, abs(w - high) / size]
        shares = [math.exp(-a) for a in apart]
        expected += sum(a * s for a, s in zip(apart, shares, strict=True)) / sum(shares) / 4
    assert value.item() == pytest.approx(expected, rel=1e-6)
    value.backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None
    assert [math.copysign(1, g) for g in weights.grad[:3].tolist()] == [1, -1, 1], "downhill is to the nearest value"
