"""The inter-layer loss (equations 2 and 3 of the paper) as a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["channel_costs", "collocated_distance", "inter_layer_loss", "referenced_distance"]


def collocated_distance(previous: Tensor, layer: Tensor, *, pruned: bool = False) -> Tensor:
    """Sum over the kernels j of a layer of `|| K[i, j] - K[i-1, j mod c[i-1]] ||_1`.

    Args:
        previous: (c[i-1], taps); the layer before.
        layer: (c[i], taps).
        pruned: weights of the layer that are 0 are pruned ones, which are not predicted and count nothing.

    Returns:
        A scalar. Gradient flows into both layers.
    """

    def distance(kernels: Tensor, reference: Tensor) -> Tensor:
        absolute = (kernels - reference).abs()
        return absolute * (kernels != 0) if pruned else absolute

    count, before = len(layer), len(previous)
    if count <= before:
        return distance(layer, previous[:count]).sum()
    # The modulo rule without a gather: whole repetitions of the layer before, then the rest of one.
    whole = count - count % before
    total = distance(layer[:whole].view(-1, *previous.shape), previous).sum()
    if whole < count:
        total = total + distance(layer[whole:], previous[: count - whole]).sum()
    return total


def referenced_distance(earlier: Sequence[Tensor], layer: Tensor, references: Tensor) -> Tensor:
    """Sum over the kernels j of a layer of `|| K[i, j] - K[references[j]] ||_1`.

    Args:
        earlier: (kernels, taps) of each earlier layer of the chain.
        layer: (kernels, taps).
        references: (kernels,) int64 kernel numbers, see `method.prediction`; a kernel without one counts nothing.

    Returns:
        A scalar. Gradient flows into all layers that are referred to.
    """
    references = references.to(layer.device)
    difference = layer - torch.cat(list(earlier))[references.clamp(min=0)]
    return (difference.abs().sum(dim=1) * (references >= 0)).sum()


def channel_costs(kernels: Sequence[Tensor], references: Sequence[Tensor]) -> list[Tensor]:
    """Mean |residual| of each kernel, relative to the mean of its layer.

    Args:
        kernels: (kernels, taps) of each layer of a chain.
        references: (kernels,) int64 of each layer, see `method.prediction`.

    Returns:
        For each layer but the first (kernels,), of mean 1; all 1 where every residual is 0.
    """
    pool, costs = torch.cat(list(kernels)), []
    for layer, given in zip(kernels[1:], references[1:], strict=True):
        given = given.to(layer.device)
        predicted = torch.where((given >= 0)[:, None], pool[given.clamp(min=0)], 0.0)
        cost = (layer - predicted).abs().mean(dim=1)
        mean = cost.mean()
        costs.append(torch.where(mean > 0, cost / mean.clamp(min=1e-30), 1.0))
    return costs


def inter_layer_loss(
    chains: Sequence[Sequence[Tensor]],
    references: Sequence[Sequence[Tensor | None]] | None = None,
    *,
    pruned: bool = False,
) -> Tensor:
    """The inter-layer loss: mean absolute difference between each predicted weight and its reference (eq. 2).

    `L_inter = (1 / Z) sum_{i >= 2} sum_j || K[i, j] - K[i-1, j mod c[i-1]] ||_1`, where Z is the number of weights that
    are predicted, summed over all chains.

    Args:
        chains: for each chain its layers' weights in order, each (kernels, ..., height, width) with one kernel size
            throughout the chain; dense convolutions count every k x k slice as a kernel.
        references: for each chain and each of its layers the number of each kernel's reference (see
            `method.prediction`), or None for the collocated rule; the anchor's entry is not used.
        pruned: see `collocated_distance`; Z counts pruned weights too.

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
            given = None if references is None else references[number][i]
            if given is None:
                distances.append(collocated_distance(kernels[i - 1], kernels[i], pruned=pruned))
                predicted = predicted + kernels[i].numel()
            else:
                distances.append(referenced_distance(kernels[:i], kernels[i], given))
                predicted = predicted + (given >= 0).sum() * taps
    if isinstance(predicted, Tensor):
        predicted = predicted.clamp(min=1).to(distances[0].device)  # nothing predicted: the loss is 0
    return torch.stack(distances).sum() / predicted
