"""Soft assignment to centres, and the histogram that it gives (Agustsson et al. 2017, "Soft-to-hard vector quantization").

    phi_ij = softmax_j(-sharpness |w_i - c_j|^2),    soft_i = sum_j phi_ij c_j,    histogram_j = sum_i phi_ij / n

Forwards and backwards it is computed piece by piece, and nothing of the size (weights x centres) is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["histogram_entropy", "soft_assignment"]

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
