"""Which kernel predicts which: the four modes of the paper, as explicit index maps.

A chain's kernels are numbered in order: layer 1's first, then layer 2's, and so on. A *reference map* is, for each
layer, an int64 tensor of shape (kernels,) that holds the number of each kernel's reference, always one of an earlier
layer, or -1 for none (the kernel is then predicted by zero).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ilwp_plugin.errors import TensorError
from ilwp_plugin.registry import Registry

__all__ = [
    "PREDICTORS",
    "Predictor",
    "collocated_references",
    "gather_references",
    "nearest_kernels",
    "previous_layer_references",
]

Report = Callable[[int], None]
"""Is told how many more kernels have found their reference."""


class Predictor(ABC):
    """Chooses the references of one layer's kernels."""

    @abstractmethod
    def references(self, kernels: Tensor, earlier: Sequence[Tensor], report: Report | None = None) -> Tensor:
        """Choose a reference for each kernel.

        Args:
            kernels: (kernels, taps) float32; the layer to predict.
            earlier: (kernels, taps) float32 each; the *reconstructed* kernels of all earlier layers of the chain, the
                anchor first.
            report: is told the progress of a search.

        Returns:
            (kernels,) int64: kernel numbers in the concatenation of `earlier`, or -1.
        """


PREDICTORS: Registry[Predictor] = Registry("prediction mode")
"""Prediction modes by name."""


class _NoPrediction(Predictor):
    """The paper's baseline: the weight itself is quantized."""

    def references(self, kernels: Tensor, earlier: Sequence[Tensor], report: Report | None = None) -> Tensor:
        return torch.full((len(kernels),), -1, dtype=torch.int64)


class _Collocated(Predictor):
    """ILWP-ILL: kernel j is predicted by kernel j mod c of the layer before it; no search, no indices to store."""

    def references(self, kernels: Tensor, earlier: Sequence[Tensor], report: Report | None = None) -> Tensor:
        return collocated_references(len(kernels), [len(layer) for layer in earlier])


class _LocalSearch(Predictor):
    """ILWP-LSS: the kernel with least L1 distance in the layer before."""

    def references(self, kernels: Tensor, earlier: Sequence[Tensor], report: Report | None = None) -> Tensor:
        first = sum(len(layer) for layer in earlier[:-1])
        return first + nearest_kernels(kernels, earlier[-1], report)


class _FullSearch(Predictor):
    """ILWP-FSS: the kernel with least L1 distance in all earlier layers."""

    def references(self, kernels: Tensor, earlier: Sequence[Tensor], report: Report | None = None) -> Tensor:
        return nearest_kernels(kernels, torch.cat(list(earlier)), report)


PREDICTORS.register("none")(_NoPrediction())
PREDICTORS.register("full")(_FullSearch())
PREDICTORS.register("local")(_LocalSearch())
PREDICTORS.register("collocated")(_Collocated())


def collocated_references(kernels: int, earlier: Sequence[int]) -> Tensor:
    """Reference numbers of the rule `K[i, j] <- K[i-1, j mod c[i-1]]` (the paper's collocated kernel).

    Args:
        kernels: number of kernels of the layer.
        earlier: number of kernels of each earlier layer; at least one layer, none empty.

    Returns:
        (kernels,) int64.
    """
    return sum(earlier[:-1]) + torch.arange(kernels) % earlier[-1]


def previous_layer_references(indices: Tensor, kernels: int, earlier: Sequence[int], layer: str) -> Tensor:
    """Reference numbers from a map into the layer before, checked.

    Args:
        indices: (kernels,) integers: kernel of the layer before, or -1 for no reference.
        kernels: number of kernels of the layer.
        earlier: number of kernels of each earlier layer.
        layer: name, for the error message.

    Raises:
        TensorError: wrong shape or type, or an index out of range.
    """
    try:
        indices = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TensorError(f"references of layer {layer!r}: expected a tensor of integers ({error})") from None
    if indices.shape != (kernels,) or indices.is_floating_point() or indices.dtype == torch.bool:
        raise TensorError(
            f"references of layer {layer!r}: expected ({kernels},) integers, one for each kernel, "
            f"got {tuple(indices.shape)} {indices.dtype}"
        )
    indices = indices.to("cpu", torch.int64)
    low, high = int(indices.min()), int(indices.max())
    if low < -1 or high >= earlier[-1]:
        raise TensorError(
            f"references of layer {layer!r}: expected indices of the {earlier[-1]} kernels of the layer before, "
            f"or -1 for none, got values from {low} to {high}"
        )
    return torch.where(indices < 0, -1, indices + sum(earlier[:-1]))


def gather_references(pool: Tensor, references: Tensor) -> Tensor:
    """The predicting kernels themselves.

    Args:
        pool: (m, taps); the kernels of all earlier layers, in order. May be empty where no kernel has a reference.
        references: (kernels,) int64, see the module's docstring.

    Returns:
        (kernels, taps); zero where there is no reference.
    """
    references = references.to(pool.device)
    if bool((references < 0).all()):
        return pool.new_zeros(len(references), pool.shape[1])
    return torch.where((references < 0)[:, None], 0.0, pool[references.clamp(min=0)])


_TREE_TAPS = 12
"""Up to so many taps a k-d tree beats brute force (3x3: 5 times; 5x5: it loses by 4), measured at 100,000 kernels."""
_QUERY_CHUNK = 1024
_CHUNK_ELEMENTS = 1 << 24


def nearest_kernels(kernels: Tensor, pool: Tensor, report: Report | None = None) -> Tensor:
    """Exact nearest neighbours in L1; of equal kernels in the pool the first one counts.

    Memory is bounded by the pool and a chunk of queries, not by their product.

    Args:
        kernels: (n, taps) float32 queries.
        pool: (m, taps) float32, m >= 1.
        report: is told the progress.

    Returns:
        (n,) int64: row of the pool.
    """
    points = pool.detach().cpu().numpy().astype(np.float64)
    # Coarse quantization makes many kernels equal; one copy of each keeps the tree shallow and the choice canonical.
    points, first = np.unique(points, axis=0, return_index=True)
    queries = kernels.detach().cpu().numpy().astype(np.float64)
    taps = queries.shape[1]
    tree = cKDTree(points) if taps <= _TREE_TAPS else None
    brute_pool = torch.from_numpy(points)
    chunk = _QUERY_CHUNK if tree is not None else max(1, _CHUNK_ELEMENTS // len(points))
    best = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        if tree is not None:
            _, best[start : start + chunk] = tree.query(part, k=1, p=1, workers=-1)
        else:
            distances = torch.cdist(torch.from_numpy(part), brute_pool, p=1)
            best[start : start + chunk] = distances.argmin(dim=1).numpy()
        if report is not None:
            report(len(part))
    return torch.from_numpy(first[best].astype(np.int64))
