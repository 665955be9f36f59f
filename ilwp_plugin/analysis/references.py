"""From which earlier layer the best reference of a kernel comes (Fig. 2 and 3 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        kernel_size: one to three numbers.
        layers: names, in order.
        shares: `shares[i][u]` is the share of layer i's kernels whose nearest kernel (L1), among those of all earlier
            layers, is in layer u; each row sums to 1, but for the anchor's, which is all 0.
    """

    kernel_size: tuple[int, ...]
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
        return cls(tuple(values["kernel_size"]), tuple(values["layers"]), tuple(tuple(row) for row in values["shares"]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `from_dict` restores it."""
        return {
            "kernel_size": list(self.kernel_size),
            "layers": list(self.layers),
            "shares": [list(row) for row in self.shares],
            "previous_layer_share": self.previous_layer_share,
        }


SAMPLE = 2048
"""Kernels of a layer that are searched for, at most."""


def reference_shares(
    kernel_size: tuple[int, ...],
    layers: Sequence[str],
    kernels: Sequence[Tensor],
    report: Callable[[int, int], None] | None = None,
) -> ReferenceShares:
    """Search the best reference of every kernel, among the unquantized kernels of all earlier layers.

    Of layers with more than SAMPLE kernels, as dense convolutions have, as many are searched for, at even distances:
    a share is then known to some two per cent.

    Args:
        kernel_size: one to three numbers.
        layers: names, in order.
        kernels: (kernels, taps) float32 of each layer.
        report: is told how many kernels are done, and of how many.
    """
    counts = torch.tensor([len(layer) for layer in kernels])
    ends = counts.cumsum(0)
    rows = [(0.0,) * len(layers)]
    samples = [layer[:: -(-len(layer) // SAMPLE)] for layer in kernels]
    total, done = sum(map(len, samples[1:])), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if report is not None:
            report(done, total)

    for i in range(1, len(kernels)):
        best = nearest_kernels(samples[i], torch.cat(list(kernels[:i])), tell)
        sources = torch.bucketize(best, ends, right=True)
        share = torch.bincount(sources, minlength=len(layers)).double() / len(samples[i])
        rows.append(tuple(share.tolist()))
    return ReferenceShares(kernel_size, tuple(layers), tuple(rows))
