"""Soft assignment to centres, and the histogram that it gives (Agustsson et al. 2017, "Soft-to-hard quantization").

    phi_ij = softmax_j(-sharpness |w_i - c_j|^2),    soft_i = sum_j phi_ij c_j,    histogram_j = sum_i phi_ij / n

Forwards and backwards it is computed piece by piece, and nothing of the size (weights x centres) is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["hard_codebook", "histogram_entropy", "soft_assignment"]

_CELLS = 1 << 22
"""Shares that are computed at one time."""


def soft_assignment(weights: Tensor, centres: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """Soft values and the soft histogram, both with gradient to weights and centres.

    Args:
        weights: (n, width) float32.
        centres: (k, width) float32.
        sharpness: in 1 / squared units of weight.

    Returns:
        (n, width) and (k,), which sums to n.
    """
    values, histogram = _Soft.apply(weights, centres, sharpness)  # type: ignore[no-untyped-call]
    return values, histogram


def histogram_entropy(histogram: Tensor) -> Tensor:
    """In bits a draw; of counts that need not be whole."""
    shares = histogram / histogram.sum()
    return -(shares * torch.log2(shares.clamp(min=1e-12))).sum()


class _Soft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, centres: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weights, centres)
        ctx.sharpness = sharpness
        values, histogram = torch.empty_like(weights), torch.zeros(len(centres), dtype=torch.float64)
        for part in _parts(weights, centres):
            shares = _shares(weights[part], centres, sharpness)
            values[part] = shares @ centres
            histogram += shares.sum(dim=0).double().cpu()
        return values, histogram.to(weights.device, weights.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        of_values, of_histogram = gradients
        weights, centres = ctx.saved_tensors
        to_weights, to_centres = torch.empty_like(weights), torch.zeros_like(centres)
        for part in _parts(weights, centres):
            shares = _shares(weights[part], centres, ctx.sharpness)
            to_centres += shares.T @ of_values[part]
            own = of_values[part] @ centres.T + of_histogram
            own = shares * (own - (shares * own).sum(dim=1, keepdim=True)) * (2 * ctx.sharpness)
            to_weights[part] = own @ centres  # the rows of `own` sum to 0, so that the weight itself drops out
            to_centres += own.T @ weights[part] - own.sum(dim=0)[:, None] * centres
        return to_weights, to_centres, None


def _parts(weights: Tensor, centres: Tensor) -> list[slice]:
    rows = max(1, _CELLS // len(centres))
    return [slice(start, start + rows) for start in range(0, len(weights), rows)]


def _shares(weights: Tensor, centres: Tensor, sharpness: float) -> Tensor:
    """(n, k). What all centres have in common, the square of the weight, drops out."""
    scores = 2 * (weights @ centres.T) - centres.square().sum(dim=1)
    return torch.softmax(sharpness * scores, dim=1)


def hard_codebook(vectors: Tensor, entries: int, bits: float) -> Tensor:
    """Centres for vectors: entropy-constrained vector quantization (Chou, Lookabaugh, Gray 1989), zero among them.

    Args:
        vectors: (n, width) float32.
        entries: the most centres.
        bits: entropy that is aimed at, of vectors that are at their nearest centres; the weight of the bits in making
            the centres is searched.

    Returns:
        (k, width) float32; the first one is 0.
    """
    every = -(-len(vectors) // _SAMPLE)
    own = vectors[::every].float()
    order = own.square().sum(dim=1).argsort(stable=True)
    first = own[order[torch.linspace(0, len(own) - 1, max(1, entries - 1)).round().long()]]
    if own.shape[1] == 1:
        half = max(1, (entries - 1) // 2)  # as many on both sides of 0
        first = torch.arange(-half, half + 1).float()[:, None] * (float(own.abs().max()) / half)
    start = torch.unique(torch.cat([torch.zeros_like(first[:1]), first]), dim=0)
    start = start[start.square().sum(dim=1).argsort(stable=True)][:entries]
    centres, entropy = _iterated(own, start, 0.0)
    low, high, met = 0.0, 4 * float(own.square().mean()) + 1e-30, entropy <= bits
    for _ in range(_SEARCH if entropy > bits else 0):
        rate = (low + high) / 2
        tried, entropy = _iterated(own, start, rate)
        if len(tried) == 1:  # bits count so much that all becomes 0
            high = rate
        elif entropy <= bits:
            high, centres, met = rate, tried, True
        else:
            low = rate
            centres = centres if met else tried  # the best that there is, where no centres are few enough
    return centres


_SAMPLE = 1 << 15
"""Vectors that centres are made of."""

_SEARCH = 8
"""Weights of the bits that are tried."""

_ITERATIONS = 15


def _iterated(vectors: Tensor, centres: Tensor, rate: float) -> tuple[Tensor, float]:
    """Lloyd's iteration with bits; also the entropy where each vector is at its nearest centre."""
    bits = torch.zeros(len(centres), dtype=torch.float64)
    counts = bits
    for _ in range(_ITERATIONS):
        costs = (centres.square().sum(dim=1) + (rate * bits).float()) - 2 * vectors @ centres.T
        found = costs.argmin(dim=1)
        counts = torch.bincount(found, minlength=len(centres)).double()
        sums = torch.zeros_like(centres).index_add_(0, found, vectors)
        kept = counts > 0
        kept[0] = True
        means = sums / counts.clamp(min=1)[:, None].float()
        means[0] = 0.0
        # One that is nearer to 0 than errors are large takes its vectors and gives nothing.
        error = (vectors - means[found]).square().sum(dim=1).mean()
        kept[1:] &= means[1:].square().sum(dim=1) > error
        centres, counts = means[kept], counts[kept]
        bits = torch.log2(counts.sum()) - torch.log2(counts.clamp(min=1))
    nearest = (centres.square().sum(dim=1) - 2 * vectors @ centres.T).argmin(dim=1)
    return centres, float(histogram_entropy(torch.bincount(nearest, minlength=len(centres)).double()))
