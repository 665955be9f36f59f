"""Entropy-constrained quantization against scikit-learn's k-means and a slow textbook version."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from ilwp_plugin.method.entropy_constrained import Quantizer, assign, ideal_bits, lloyd, uniform


def some(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator) * torch.rand(n, generator=generator).square()
    return values, torch.rand(n, generator=generator) * 2


def cost(values: Tensor, weights: Tensor, quantizer: Quantizer, rate: float) -> float:
    """In doubles, from the definition."""
    counts = np.bincount(quantizer.indices.numpy(), minlength=len(quantizer.entries))
    own = quantizer.indices.numpy()
    bits = -np.log2(counts[own] / len(values))
    errors = weights.numpy() * (values.numpy() - quantizer.entries.numpy()[own]) ** 2
    return float((errors + rate * bits).mean())


def test_without_bits_it_is_weighted_k_means() -> None:
    values, weights = some(3000)
    values = torch.cat([values, torch.zeros(200)])  # the entry 0 has values of its own, as in a pruned network
    weights = torch.cat([weights, torch.ones(200)])
    quantizer = lloyd(values, weights, 0.4, 0.0, most=500)
    start = quantizer.entries.double().numpy()
    free = (values != 0) & (quantizer.indices != int((quantizer.entries == 0).nonzero()[0]))
    own = values[free].double().numpy()[:, None]
    others = start[start != 0][:, None]
    found = KMeans(len(others), init=others, n_init=1, tol=0, max_iter=500).fit(own, sample_weight=weights[free])
    np.testing.assert_allclose(np.sort(found.cluster_centers_[:, 0]), others[:, 0], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.002, 0.02])
@pytest.mark.parametrize("weighted", [False, True])
def test_assignments_against_all_entries(rate: float, weighted: bool) -> None:
    values, weights = some(500)
    entries = (torch.arange(-12, 13) * 0.2).float()
    bits = ideal_bits(torch.bincount((values / 0.2).round().long().clamp(-12, 12) + 12, minlength=25))
    indices, total = assign(values, weights if weighted else None, entries, bits, rate)
    h = weights if weighted else torch.ones(len(values))
    costs = h[:, None].double() * (values[:, None].double() - entries.double()).square() + rate * bits
    least = costs.min(dim=1).values
    torch.testing.assert_close(costs.gather(1, indices[:, None])[:, 0], least, rtol=1e-5, atol=1e-8)
    assert total == pytest.approx(float(least.sum()), rel=1e-5)


def slow_lloyd(values: Tensor, weights: Tensor, step: float, rate: float) -> tuple[list[float], list[int]]:
    """The same iteration in plain Python."""
    v, h = values.double().tolist(), weights.double().tolist()
    entries = [k * step for k in range(round(min(v) / step), round(max(v) / step) + 1)]
    near = [min(range(len(entries)), key=lambda k, x=x: abs(x - entries[k])) for x in v]
    bits = [math.log2(len(v)) - math.log2(max(1, near.count(k))) for k in range(len(entries))]
    before = math.inf
    own: list[int] = []
    for _ in range(60):
        own = [
            min(range(len(entries)), key=lambda k, x=x, c=c: c * (x - entries[k]) ** 2 + rate * bits[k])
            for x, c in zip(v, h, strict=True)
        ]
        total = sum(c * (x - entries[k]) ** 2 + rate * bits[k] for x, c, k in zip(v, h, own, strict=True))
        kept = [k for k in range(len(entries)) if k in own or entries[k] == 0]
        means = []
        for k in kept:
            mass = sum(c for c, i in zip(h, own, strict=True) if i == k)
            mean = sum(c * x for x, c, i in zip(v, h, own, strict=True) if i == k) / mass if mass else 0.0
            means.append(0.0 if entries[k] == 0 else mean)
        bits = [math.log2(len(v)) - math.log2(max(1, own.count(k))) for k in kept]
        pairs = sorted(zip(means, bits, strict=True))
        entries, bits = [e for e, _ in pairs], [b for _, b in pairs]
        if total >= before * (1 - 1e-4):
            break
        before = total
    own = [
        min(range(len(entries)), key=lambda k, x=x, c=c: c * (x - entries[k]) ** 2 + rate * bits[k])
        for x, c in zip(v, h, strict=True)
    ]
    return [entries[k] for k in own], own


def test_against_a_slow_version() -> None:
    values, weights = some(200)
    quantizer = lloyd(values, weights, 0.25, 0.004)
    expected, _ = slow_lloyd(values, weights, 0.25, 0.004)
    torch.testing.assert_close(quantizer.entries[quantizer.indices], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_it_lowers_what_it_is_to_lower() -> None:
    values, weights = some(2000)
    rate = 0.004
    plain = uniform(values, weights, 0.25)
    better = lloyd(values, weights, 0.25, rate)
    assert cost(values, weights, better, rate) < 0.98 * cost(values, weights, plain, rate)
    assert better.cost == pytest.approx(cost(values, weights, better, rate), rel=1e-4)
    coarse, fine = uniform(values, weights, 0.5), lloyd(values, weights, 0.35, 0.016)
    assert cost(values, weights, fine, 0.016) < 0.95 * cost(values, weights, coarse, 0.016)
    again = lloyd(values, weights, 0.25, rate, entries=better.entries)
    assert cost(values, weights, again, rate) <= cost(values, weights, better, rate) * (1 + 1e-6)


def test_uniform() -> None:
    values, weights = some(300)
    quantizer = uniform(values, weights, 0.2)
    codes = torch.round(values.double() / 0.2)
    assert len(quantizer.entries) == len(set(codes.tolist()) | {0.0})
    for code in codes.unique():
        own = codes == code
        mean = float((values[own] * weights[own]).double().sum() / weights[own].double().sum())
        expected = mean if code else 0.0
        assert quantizer.entries[quantizer.indices][own].tolist() == pytest.approx(
            [expected] * int(own.sum()), rel=1e-5
        )


def test_zeros_stay() -> None:
    values, weights = some(300)
    values[::3] = 0
    weights[::3] = 0
    for quantizer in (uniform(values, weights, 0.2), lloyd(values, weights, 0.2, 0.01)):
        assert not quantizer.entries[quantizer.indices][::3].any()
        assert (quantizer.entries == 0).sum() == 1 and bool((quantizer.entries.diff() > 0).all())


@pytest.mark.parametrize("values", [[0.0], [0.0] * 9, [1.5] * 4, [-2.0], [1e-30, -1e30], [3.0, 3.0, -1e-3]])
def test_odd_values(values: list[float]) -> None:
    own = torch.tensor(values)
    for quantizer in (uniform(own, None, 0.1), lloyd(own, None, 0.1, 0.001)):
        assert len(quantizer.entries) <= len(set(values)) + 1
        assert (quantizer.entries[quantizer.indices] - own).abs().max() <= max(0.051, own.abs().max() / 4000)
