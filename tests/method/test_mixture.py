"""The mixture of soft weight-sharing: against torch's distributions, autograd and scipy's optimiser."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor, nn

from ilwp_plugin.method.mixture import Gamma, Mixture, fit_by_expectation, negative_log_likelihood


def mixture(components: int = 5, seed: int = 0) -> Mixture:
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int, scale: float) -> Tensor:
        return (torch.randn(size, generator=generator) * scale).requires_grad_()

    return Mixture(draw(components - 1, 0.5), draw(components, 1.0), draw(components - 1, 1.0), 0.8)


def textbook(own: Mixture, values: Tensor) -> Tensor:
    shares = torch.cat([torch.tensor([0.8]), own.logits.softmax(0) * 0.2])
    means = torch.cat([torch.zeros(1), own.means])
    components = torch.distributions.Normal(means, (-own.log_precisions / 2).exp())
    whole = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(shares), components)
    return -whole.log_prob(values).sum()


def test_likelihood_and_its_gradients() -> None:
    weights = [nn.Parameter(torch.randn(7, 9)), nn.Parameter(torch.randn(70000) * 0.1)]
    found = []
    for compute in (
        lambda own: negative_log_likelihood(own, weights),
        lambda own: textbook(own, torch.cat([w.flatten() for w in weights])),
    ):
        own = mixture()
        value = compute(own)
        parameters = [own.means, own.log_precisions, own.logits, *weights]
        found.append([value.detach(), *torch.autograd.grad(value * 0.3, parameters)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


def test_gamma_is_a_gamma_distribution() -> None:
    prior = Gamma(250.0, 0.1)
    x = torch.tensor([7.0, 7.8, 8.5], dtype=torch.float64)
    density = scipy.stats.gamma.logpdf(x.exp().numpy(), a=250, scale=10)
    np.testing.assert_allclose(np.diff(prior.penalty(x).numpy()), -np.diff(density), rtol=1e-9)


def test_expectation_finds_what_an_optimiser_finds() -> None:
    """The minimum of the likelihood with its priors, by L-BFGS from the same start."""
    generator = np.random.default_rng(0)
    parts = [generator.normal(0, 0.05, 800), generator.normal(0.5, 0.1, 100), generator.normal(-0.4, 0.1, 90)]
    values = torch.from_numpy(np.concatenate(parts))
    zero, others = Gamma(20.0, 0.05), Gamma(10.0, 0.1)
    start = Mixture.start(3, 0.8, 0.5, 0.15)

    def cost(x: np.ndarray) -> float:
        own = Mixture(*(torch.from_numpy(part) for part in (x[:2], x[2:5], x[5:])), 0.8)
        return float(negative_log_likelihood(own, [values]) + own.penalty(zero, others))

    begin = np.concatenate([start.means, start.log_precisions, start.logits]).astype(np.float64)
    best = scipy.optimize.minimize(cost, begin, method="L-BFGS-B")
    found = fit_by_expectation(start, values, zero, others, rounds=500)
    ours = cost(np.concatenate([found.means, found.log_precisions, found.logits - found.logits.mean()]))
    assert ours == pytest.approx(best.fun, rel=1e-6)
    assert sorted(found.means.tolist()) == pytest.approx(sorted(best.x[:2].tolist()), abs=2e-3)


def test_merging() -> None:
    """Three are alike, in a chain; the smallest mean left becomes 0."""
    own = Mixture(
        torch.tensor([0.5, 0.5 + 1e-7, -0.3, 0.01]), torch.tensor([4.0, 4.0, 4.0, 5.0, 9.0]), torch.zeros(4), 0.6
    )
    means, logs, shares = own.merged()
    assert means.tolist() == pytest.approx([0, 0.5, -0.3, 0.01], abs=1e-6)
    assert logs.tolist() == pytest.approx([4, 4, 5, 9]) and shares.exp().tolist() == pytest.approx([0.6, 0.2, 0.1, 0.1])
    assert len(own.merged(1e30)[0]) == 1
    values = torch.linspace(-0.6, 0.6, 101)
    book, numbers = own.assigned(values)
    responsible = torch.stack(
        [
            share + torch.distributions.Normal(mean, math.exp(-log / 2)).log_prob(values.double())
            for mean, log, share in zip(means.tolist(), logs.tolist(), shares, strict=True)
        ]
    )
    assert torch.equal(numbers, responsible.argmax(dim=0)) and torch.equal(book, means.float())
