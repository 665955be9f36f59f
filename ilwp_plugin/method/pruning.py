"""Which weights pruning by magnitude takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

__all__ = ["kept_weights", "sparsity_at"]


def kept_weights(
    weights: Mapping[str, Tensor], sparsity: float, by: Literal["deviation", "magnitude"]
) -> dict[str, Tensor]:
    """The weights that stay when a share of all of them becomes 0.

    Args:
        weights: by key, real and finite.
        sparsity: share of zeros afterwards, those that are there already among them; there may be more of these.
        by: whether a weight is compared with the standard deviation of its layer, so that each layer has a threshold of
            its own (Han et al. 2015b), or all weights of the network with one threshold.

    Returns:
        By key, bool in the shape and on the device of the weight.
    """
    scores: dict[str, Tensor] = {}
    for key, weight in weights.items():
        size = weight.detach().double().abs()
        spread = float(size.square().mean().sqrt()) if by == "deviation" else 1.0
        scores[key] = size / (spread or 1.0)
    flat = torch.cat([score.flatten().cpu() for score in scores.values()])
    count = round(sparsity * len(flat))
    threshold = float(flat.kthvalue(count).values) if count else 0.0
    return {key: score > threshold for key, score in scores.items()}


def sparsity_at(epoch: int, epochs: int, final: float) -> float:
    """The share of zeros once an epoch begins: fast at first, slow in the end (Zhu & Gupta 2017).

    Args:
        epoch: counted from 0.
        epochs: in which it rises; the last of them begins with all of it.
        final: the share in the end.
    """
    left = 1 - min(1.0, (epoch + 1) / max(1, epochs))
    return final * (1 - left**3)
