"""Channel order, signs and gains that make collocated prediction fit, without changing what a network computes.

Between two pointwise convolutions the channels of a depthwise layer can be permuted freely; where a batch norm follows,
each kernel can also be scaled by any non-zero gain, its sign included. That is not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ilwp_plugin.method.prediction import collocated_references

__all__ = ["ChannelAlignment", "align_kernels", "free_gains"]

_SMALLEST_NORM = 1e-12
"""Kernels of less, relative to the largest of their layer, keep their gain, which would leave the range of float32.
Dead kernels of more have to be scaled: a batch norm amplifies what weight decay has made small."""


_RANK_WEIGHT = 2.0
"""L1 distance of two kernels of unit norm that a difference of all ranks of importance is worth. On MobileNet the mean
residual grows by 11 %; with less, pruning kernels with those that they predict costs accuracy."""


@dataclass(frozen=True, eq=False)
class ChannelAlignment:
    """What to do with a layer's channels: first permute, then scale.

    Attributes:
        order: (kernels,) int64; the new kernel j is the old kernel order[j].
        gain: (kernels,) float32, not 0; factor of the new kernel j. All 1 where gains are not free.
    """

    order: Tensor
    gain: Tensor

    def apply(self, kernels: Tensor) -> Tensor:
        """The aligned kernels, (kernels, taps)."""
        return kernels[self.order] * self.gain[:, None]


def free_gains(kernels: Tensor) -> Tensor:
    """The gains that give every kernel unit L2 norm.

    Equal norms share one quantizer step well, and leave only the shape of a kernel to be predicted.

    Args:
        kernels: (kernels, taps) float32.

    Returns:
        (kernels,) float32, positive; 1 for kernels of (nearly) no norm.
    """
    norm = kernels.double().norm(dim=1)
    dead = norm <= _SMALLEST_NORM * norm.max()
    return torch.where(dead, 1.0, 1.0 / torch.where(dead, 1.0, norm)).float()


def align_kernels(
    kernels: Tensor,
    reference: Tensor | None,
    *,
    permute: bool = True,
    gains: bool = True,
    importance: tuple[Tensor, Tensor] | None = None,
) -> ChannelAlignment:
    """Align a layer to the collocated slots of the layer before.

    The permutation is the linear assignment that minimises the sum of the L1 distances between each kernel, scaled to
    unit norm and with the better sign where gains are free, and the kernel of the layer before that will predict it.

    Args:
        kernels: (kernels, taps) float32.
        reference: (c, taps) float32: the layer before as the decoder will have it; None for an anchor, which keeps its
            order.
        permute: whether the order is free.
        gains: whether signs and gains are free.
        importance: (kernels,) of the kernels and (c,) of the references, in any units: then kernels of like rank are
            brought together as well, so that pruning by it takes both or none.

    Returns:
        The alignment.
    """
    scale = free_gains(kernels) if gains else torch.ones(len(kernels))
    if reference is None:
        return ChannelAlignment(torch.arange(len(kernels)), scale)
    scaled = (kernels * scale[:, None]).double()
    pool = reference.double()
    cost = torch.cdist(pool, scaled, p=1)  # (slots of the layer before, kernels)
    if gains:
        mirrored = torch.cdist(pool, -scaled, p=1)
        flip = mirrored < cost
        cost = torch.minimum(cost, mirrored)
    slots = collocated_references(len(kernels), [len(reference)])
    total = cost[slots]
    if importance is not None:
        own, theirs = map(_ranks, importance)
        total = total + _RANK_WEIGHT * (theirs[slots, None] - own).abs()
    order = linear_sum_assignment(total.numpy())[1] if permute else np.arange(len(kernels))
    chosen = torch.from_numpy(order)
    signs = torch.where(flip[slots, chosen], -1.0, 1.0) if gains else torch.ones(len(kernels))
    return ChannelAlignment(chosen, scale[chosen] * signs)


def _ranks(values: Tensor) -> Tensor:
    """(n,) float64, from 0 for the smallest to less than 1."""
    return values.argsort().argsort().double() / len(values)
