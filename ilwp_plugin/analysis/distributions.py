"""How weights and their residuals are distributed (Fig. 7 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilwp_plugin.method.prediction import collocated_references, gather_references

__all__ = ["Distribution", "distributions"]

_BINS = 121


@dataclass(frozen=True)
class Distribution:
    """A histogram with the Laplace distribution fitted to the same values.

    Attributes:
        name: "weights" or "residuals".
        count: number of values.
        edges: bounds of the bins, in units of weight; they hold 99.8 % of the values and more.
        density: of each bin.
        laplace_scale: b of `exp(-|x| / b) / (2 b)`: the mean magnitude, the maximum-likelihood fit at median 0.
    """

    name: str
    count: int
    edges: tuple[float, ...]
    density: tuple[float, ...]
    laplace_scale: float

    @property
    def laplace_entropy_bits(self) -> float:
        """Differential entropy of the fit, `log2(2 e b)` bits; two of them differ by the bits a weight saved."""
        return math.log2(2 * math.e * self.laplace_scale) if self.laplace_scale > 0 else -math.inf

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Distribution:
        """From what `to_dict` returns."""
        return cls(
            values["name"],
            values["count"],
            tuple(values["edges"]),
            tuple(values["density"]),
            values["laplace_scale"],
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `from_dict` restores it."""
        entropy = self.laplace_entropy_bits
        return {
            "name": self.name,
            "count": self.count,
            "edges": list(self.edges),
            "density": list(self.density),
            "laplace_scale": self.laplace_scale,
            "laplace_entropy_bits": entropy if math.isfinite(entropy) else None,
        }


def distributions(kernels: Sequence[Tensor]) -> tuple[Distribution, Distribution]:
    """Weights and collocated residuals of the predicted layers of a chain, on common bins.

    Args:
        kernels: (kernels, taps) float32 of each layer, the anchor first.
    """
    residuals = []
    for i in range(1, len(kernels)):
        references = collocated_references(len(kernels[i]), [len(layer) for layer in kernels[:i]])
        residuals.append((kernels[i] - gather_references(torch.cat(list(kernels[:i])), references)).flatten())
    values = {
        "weights": torch.cat([layer.flatten() for layer in kernels[1:]]).double().numpy(),
        "residuals": torch.cat(residuals).double().numpy(),
    }
    reach = max(float(np.quantile(np.abs(v), 0.998)) for v in values.values()) or 1.0
    edges = np.linspace(-reach, reach, _BINS + 1)
    result = []
    for name, v in values.items():
        counts, _ = np.histogram(v, edges)
        density = counts / (len(v) * (edges[1] - edges[0]))
        result.append(
            Distribution(name, len(v), tuple(edges.tolist()), tuple(density.tolist()), float(np.abs(v).mean()))
        )
    return result[0], result[1]
