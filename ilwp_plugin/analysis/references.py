"""From which earlier layer the best reference of a kernel comes (Fig. 2 and 3 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilwp_plugin.method.prediction import nearest_kernels

__all__ = ["ReferenceShares", "reference_shares"]


@dataclass(frozen=True)
class ReferenceShares:
    """The heat map of best references of one chain.

    Attributes:
        kernel_size: height and width.
        layers: names, in order.
        shares: shares[i][u] is the share of layer i's kernels whose nearest kernel (L1), among those of all earlier
            layers, is in layer u; each row sums to 1, but for the anchor's, which is all 0.
    """

    kernel_size: tuple[int, int]
    layers: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]

    @property
    def previous_layer_share(self) -> float | None:
        """Mean share of the layer just before, over the layers that have a choice: the paper's hypothesis.

        None for a chain of two layers, which has no choice.
        """
        rows = range(2, len(self.layers))
        return sum(self.shares[i][i - 1] for i in rows) / len(rows) if rows else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReferenceShares:
        """From what `to_dict` returns."""
        height, width = values["kernel_size"]
        return cls((height, width), tuple(values["layers"]), tuple(tuple(row) for row in values["shares"]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "kernel_size": list(self.kernel_size),
            "layers": list(self.layers),
            "shares": [list(row) for row in self.shares],
            "previous_layer_share": self.previous_layer_share,
        }


def reference_shares(kernel_size: tuple[int, int], layers: Sequence[str], kernels: Sequence[Tensor]) -> ReferenceShares:
    """Search the best reference of every kernel, among the unquantized kernels of all earlier layers.

    Args:
        kernel_size: height and width.
        layers: names, in order.
        kernels: (kernels, taps) float32 of each layer.
    """
    counts = torch.tensor([len(layer) for layer in kernels])
    ends = counts.cumsum(0)
    rows = [(0.0,) * len(layers)]
    for i in range(1, len(kernels)):
        best = nearest_kernels(kernels[i], torch.cat(list(kernels[:i])))
        sources = torch.bucketize(best, ends, right=True)
        share = torch.bincount(sources, minlength=len(layers)).double() / len(kernels[i])
        rows.append(tuple(share.tolist()))
    return ReferenceShares(kernel_size, tuple(layers), tuple(rows))
