"""The inter-layer loss (equations 2 and 3 of the paper) as a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["inter_layer_distance", "inter_layer_loss"]


def inter_layer_distance(
    previous: Tensor, layer: Tensor, indices: Tensor | None = None, *, pruned: bool = False
) -> Tensor:
    """Sum over the kernels j of a layer of `|| K[i, j] - K[i-1, indices[j]] ||_1`.

    Args:
        previous: (c[i-1], taps); the layer before.
        layer: (c[i], taps).
        indices: (c[i],) int64: reference of each kernel in the layer before, or -1 for none (such a kernel counts
            nothing). None is the collocated rule, `j mod c[i-1]`.
        pruned: weights of the layer that are 0 are pruned ones, which are not predicted and count nothing.

    Returns:
        A scalar. Gradient flows into both layers.
    """

    def distance(kernels: Tensor, reference: Tensor) -> Tensor:
        absolute = (kernels - reference).abs()
        return absolute * (kernels != 0) if pruned else absolute

    if indices is not None:
        indices = indices.to(layer.device)
        return (distance(layer, previous[indices.clamp(min=0)]).sum(dim=1) * (indices >= 0)).sum()
    count, before = len(layer), len(previous)
    if count <= before:
        return distance(layer, previous[:count]).sum()
    # The modulo rule without a gather: whole repetitions of the layer before, then the rest of one.
    whole = count - count % before
    total = distance(layer[:whole].view(-1, *previous.shape), previous).sum()
    if whole < count:
        total = total + distance(layer[whole:], previous[: count - whole]).sum()
    return total


def inter_layer_loss(
    chains: Sequence[Sequence[Tensor]],
    indices: Sequence[Sequence[Tensor | None]] | None = None,
    *,
    pruned: bool = False,
) -> Tensor:
    """The inter-layer loss: mean absolute difference between each predicted weight and its reference (eq. 2).

    `L_inter = (1 / Z) sum_{i >= 2} sum_j || K[i, j] - K[i-1, j mod c[i-1]] ||_1`, where Z is the number of weights that
    are predicted, summed over all chains.

    Args:
        chains: for each chain its layers' weights in order, each (kernels, ..., height, width) with one kernel size
            throughout the chain; dense convolutions count every k x k slice as a kernel.
        indices: for each chain and each of its layers an index map into the layer before (see
            `inter_layer_distance`), or None for the collocated rule; the anchor's entry is not used.
        pruned: see `inter_layer_distance`; Z counts pruned weights too.

    Returns:
        A float32 scalar, also for half-precision weights and under autocast.

    >>> a, b = torch.zeros(2, 1, 3, 3), torch.ones(4, 1, 3, 3)
    >>> inter_layer_loss([[a, b]])
    tensor(1.)
    """
    distances: list[Tensor] = []
    predicted: Tensor | int = 0
    for number, chain in enumerate(chains):
        taps = chain[0].shape[-2] * chain[0].shape[-1]
        kernels = [weight.float().reshape(-1, taps) for weight in chain]
        for i in range(1, len(kernels)):
            index = None if indices is None else indices[number][i]
            distances.append(inter_layer_distance(kernels[i - 1], kernels[i], index, pruned=pruned))
            predicted = predicted + (kernels[i].numel() if index is None else (index >= 0).sum() * taps)
    if isinstance(predicted, Tensor):
        predicted = predicted.clamp(min=1).to(distances[0].device)  # nothing predicted: the loss is 0
    return torch.stack(distances).sum() / predicted
