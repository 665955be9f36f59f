"""A mixture of Gaussians as a prior of weights (Ullrich et al. 2017), with Gamma priors on the precisions.

The first component is for zero: its mean is 0, and its share of the weights is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Gamma", "Mixture", "fit_by_expectation", "negative_log_likelihood"]

_CHUNK = 1 << 15
"""Weights that are looked at at one time."""


@dataclass(frozen=True)
class Gamma:
    """A Gamma distribution of precisions: its mean is shape / rate, its weight grows with the shape."""

    shape: float
    rate: float

    def penalty(self, log_precision: Tensor) -> Tensor:
        """Minus the logarithm of the density at a precision, but for what does not depend on it."""
        return (1 - self.shape) * log_precision + self.rate * log_precision.exp()


@dataclass(frozen=True, eq=False)
class Mixture:
    """Components; the first is that of zero.

    Attributes:
        means: (k - 1,) of all but the first.
        log_precisions: (k,).
        logits: (k - 1,) of the shares of all but the first, before they are normalised.
        zero_share: of the first.
    """

    means: Tensor
    log_precisions: Tensor
    logits: Tensor
    zero_share: float

    @classmethod
    def start(cls, components: int, zero_share: float, reach: float, deviation: float) -> Mixture:
        """Means evenly from -reach to reach, all with one deviation and one share."""
        others = components - 1
        return cls(
            torch.linspace(-reach, reach, others) if others > 1 else torch.full((others,), reach),
            torch.full((components,), -2 * math.log(deviation)),
            torch.zeros(others),
            zero_share,
        )

    @property
    def all_means(self) -> Tensor:
        """(k,), 0 first."""
        return torch.cat([self.means.new_zeros(1), self.means])

    @property
    def log_shares(self) -> Tensor:
        """(k,) logarithms of the shares."""
        zero = self.logits.new_full((1,), math.log(self.zero_share))
        return torch.cat([zero, self.logits.log_softmax(0) + math.log1p(-self.zero_share)])

    def log_densities(self, values: Tensor) -> Tensor:
        """(n, k): logarithm of share times density of each component at each of (n,) values."""
        difference = values[:, None] - self.all_means
        scale = self.log_shares + (self.log_precisions - math.log(2 * math.pi)) / 2
        return scale - difference.square() * (self.log_precisions.exp() / 2)

    def penalty(self, zero: Gamma, others: Gamma) -> Tensor:
        """What the Gamma priors add to the negative log-likelihood."""
        return zero.penalty(self.log_precisions[:1]).sum() + others.penalty(self.log_precisions[1:]).sum()

    @torch.no_grad()
    def merged(self, distance: float = 1e-10) -> tuple[Tensor, Tensor, Tensor]:
        """Components whose Kullback-Leibler divergence is below a distance made one, zero's among them.

        A merged one has the mean and the precision of its parts, weighted by their shares; the mean nearest to 0
        becomes 0.

        Returns:
            Means, log-precisions, log-shares; (m,) float64 each.
        """
        means, logs, shares = self.all_means.double(), self.log_precisions.double(), self.log_shares.double()
        precisions = logs.exp()
        gap = (means[:, None] - means).square() * precisions  # of j, at [i, j]
        divergence = (logs[:, None] - logs + precisions / precisions[:, None] + gap - 1) / 2
        close = torch.minimum(divergence, divergence.T) < distance
        found: list[tuple[float, float, float]] = []
        left = list(range(len(means)))
        while left:
            group, grown = {left[0]}, 0
            while len(group) > grown:
                grown = len(group)
                group |= {j for i in group for j in left if bool(close[i, j])}
            left = [i for i in left if i not in group]
            own = sorted(group)
            weights = shares[own].softmax(0)
            found.append(
                (
                    float((weights * means[own]).sum()),
                    math.log(float((weights * precisions[own]).sum())),
                    float(shares[own].logsumexp(0)),
                )
            )
        new = torch.tensor(found, dtype=torch.float64)
        new[new[:, 0].abs().argmin(), 0] = 0.0
        return new[:, 0], new[:, 1], new[:, 2]

    @torch.no_grad()
    def assigned(self, values: Tensor, distance: float = 1e-10) -> tuple[Tensor, Tensor]:
        """The components that are most responsible for values, once they are merged.

        Returns:
            Means (m,) float32, and for each of the (n,) values its number, int64 on the CPU.
        """
        means, logs, shares = self.merged(distance)
        scale, precisions = shares + logs / 2, logs.exp() / 2
        numbers = [
            (scale - (part.double().cpu()[:, None] - means).square() * precisions).argmax(dim=1)
            for part in torch.split(values, _CHUNK)
        ]
        return means.float(), torch.cat(numbers) if numbers else torch.empty(0, dtype=torch.int64)


def negative_log_likelihood(mixture: Mixture, weights: Sequence[Tensor]) -> Tensor:
    """Of all weights under the mixture, a scalar with gradient to the weights and to what the mixture has.

    The gradients are computed along with the value, some weights at a time: what autograd would keep is as large as all
    weights times all components.
    """
    result: Tensor = _Likelihood.apply(  # type: ignore[no-untyped-call]
        mixture.all_means, mixture.log_precisions, mixture.log_shares, *weights
    )
    return result


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means: Tensor, logs: Tensor, shares: Tensor, *weights: Tensor) -> Tensor:
        scale, precisions = shares + (logs - math.log(2 * math.pi)) / 2, logs.exp()
        total = means.new_zeros((), dtype=torch.float64)
        to_means, to_logs, to_shares = (torch.zeros_like(means, dtype=torch.float64) for _ in range(3))
        to_weights = []
        for weight in weights:
            gradient = torch.empty(weight.numel(), dtype=means.dtype, device=weight.device)
            at = 0
            for part in torch.split(weight.detach().reshape(-1).to(means.dtype), _CHUNK):
                difference = part[:, None] - means
                square = difference.square()
                logits = scale - square * (precisions / 2)
                total -= logits.logsumexp(1).sum(dtype=torch.float64)
                responsible = logits.softmax(1)
                pull = responsible * difference
                gradient[at : at + len(part)] = pull @ precisions
                to_means -= pull.sum(0, dtype=torch.float64) * precisions
                own = responsible.sum(0, dtype=torch.float64)
                to_shares -= own
                to_logs -= own / 2 - (responsible * square).sum(0, dtype=torch.float64) * precisions / 2
                at += len(part)
            to_weights.append(gradient.reshape(weight.shape).to(weight.dtype))
        ctx.save_for_backward(*(g.to(means.dtype) for g in (to_means, to_logs, to_shares)), *to_weights)
        return total.to(means.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradients[0].to(saved.dtype) * saved for saved in ctx.saved_tensors)


@torch.no_grad()
def fit_by_expectation(mixture: Mixture, values: Tensor, zero: Gamma, others: Gamma, rounds: int = 100) -> Mixture:
    """Expectation-maximisation with the Gamma priors, for weights that stay as they are.

    Args:
        mixture: to begin with.
        values: (n,) real, at least one.
        zero: prior of the precision of the component of zero.
        others: of the others.
        rounds: at most.
    """
    values = values.detach().double().cpu()
    shapes = torch.tensor([zero.shape, *[others.shape] * len(mixture.means)], dtype=torch.float64)
    rates = torch.tensor([zero.rate, *[others.rate] * len(mixture.means)], dtype=torch.float64)
    mixture = Mixture(
        mixture.means.double(), mixture.log_precisions.double(), mixture.logits.double(), mixture.zero_share
    )
    before = math.inf
    for _ in range(rounds):
        counts, sums, squares = (torch.zeros(len(shapes), dtype=torch.float64) for _ in range(3))
        cost = float(mixture.penalty(zero, others))
        for part in torch.split(values, _CHUNK):
            logs = mixture.log_densities(part)
            cost -= float(logs.logsumexp(1).sum())
            responsible = logs.softmax(1)
            counts += responsible.sum(0)
            sums += responsible.T @ part
            squares += responsible.T @ part.square()
        means = torch.where(counts > 1e-12, sums / counts.clamp(min=1e-12), mixture.all_means)
        means[0] = 0
        spread = squares - 2 * means * sums + counts * means.square()
        precisions = (counts / 2 + shapes - 1) / (spread.clamp(min=0) / 2 + rates)
        mixture = Mixture(means[1:], precisions.log(), counts[1:].clamp(min=1e-300).log(), mixture.zero_share)
        if before - cost < 1e-9 * abs(cost):
            break
        before = cost
    return mixture
