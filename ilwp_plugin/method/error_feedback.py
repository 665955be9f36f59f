"""Error feedback: the rounding error of each weight is made up for by the weights of its kernel that are still to come.

This is the optimal brain surgeon (Hassibi, Stork 1993) in the order of GPTQ (Frantar et al. 2022), for dense, grouped
and depthwise convolutions and linear layers. Its inputs are those that the *quantized* model gives the layer, and its
aim is the output of the original one: first the weights that map the one to the other are found (least squares, damped
towards the given weights), then these are rounded with feedback.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilwp_plugin.method.rounding import Rounding

__all__ = ["Feedback", "Layer", "Moments", "at_least_single", "input_columns"]

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
"""The modules whose inputs can be seen as columns of a matrix."""

TARGET_DAMPING = 0.1
"""Share of the mean input energy that holds the least-squares weights to the given ones."""

MOST_GROWTH = 4.0
"""The largest factor between the norm of an output's least-squares weights and that of its given ones."""

ROUNDING_DAMPING = 0.03
"""Share of the mean input energy that is added to every input before feedback, if no other is given."""

_BLOCK = 32
"""Columns between two updates of all the weights to come."""

_COLUMNS, _COLUMNS_PER_WEIGHT = 1 << 14, 1 << 7
"""Columns that are enough for the sums of a layer: neighbouring places say much the same."""

_CHUNK_VALUES = 1 << 24
"""Unfolded inputs that are held at one time."""


def input_columns(layer: Layer, inputs: Tensor) -> Tensor:
    """The inputs of a layer as columns that its flattened weights are multiplied with.

    Args:
        layer: the layer.
        inputs: (n, c, ...) of a convolution, (..., features) of a linear layer.

    Returns:
        (groups, weights of one output, columns).
    """
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1]).transpose(1, 2)
    groups = layer.groups
    padding = layer._reversed_padding_repeated_twice
    if any(padding):
        inputs = F.pad(inputs, padding, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    if layer.kernel_size == (1, 1):
        columns = inputs[:, :, :: layer.stride[0], :: layer.stride[1]].flatten(2)
    elif isinstance(layer, nn.Conv2d):
        columns = F.unfold(inputs, layer.kernel_size, layer.dilation, 0, layer.stride)
    else:
        columns = _unfolded(layer, inputs)
    images, _, places = columns.shape
    return columns.reshape(images, groups, -1, places).permute(1, 2, 0, 3).reshape(groups, -1, images * places)


def _unfolded(layer: nn.Conv1d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """What `F.unfold` gives of images, of padded inputs of one or three dimensions: (n, channels x taps, places)."""
    dims = len(layer.kernel_size)
    for dim, (size, gap, stride) in enumerate(zip(layer.kernel_size, layer.dilation, layer.stride, strict=True), 2):
        inputs = inputs.unfold(dim, gap * (size - 1) + 1, stride)[..., ::gap]
    places, taps = range(2, 2 + dims), range(2 + dims, 2 + 2 * dims)
    columns = inputs.permute(0, 1, *taps, *places)
    return columns.reshape(len(inputs), columns.shape[1 : 2 + dims].numel(), -1)


@dataclass
class Moments:
    """Sums over the inputs of a layer: q of the quantized model, f of the original one.

    Attributes:
        gram: (groups, d, d) float64, sum of `q q^T`.
        cross: (groups, d, d) float64, sum of `f q^T`.
        quantized: (groups, d) float64, sum of q.
        original: (groups, d) float64, sum of f.
        count: number of columns.
    """

    gram: Tensor = field(default_factory=lambda: torch.zeros(()))
    cross: Tensor = field(default_factory=lambda: torch.zeros(()))
    quantized: Tensor = field(default_factory=lambda: torch.zeros(()))
    original: Tensor = field(default_factory=lambda: torch.zeros(()))
    count: int = 0

    def add(self, layer: Layer, quantized: Tensor, original: Tensor) -> None:
        """Add inputs, the same examples in both; of many places evenly spaced examples are taken.

        Args:
            layer: whose inputs they are.
            quantized: inputs that came through what is quantized already, as the layer gets them.
            original: the same of the original network, in the same shape.
        """
        if not isinstance(layer, nn.Linear):
            places = quantized[0, 0].numel() // math.prod(layer.stride)
            enough = max(_COLUMNS, _COLUMNS_PER_WEIGHT * layer.weight[0].numel())
            every = max(1, len(quantized) * places // enough)
            quantized, original = quantized[::every], original[::every]
        taps = layer.weight[0, 0].numel()
        held = max(1, _CHUNK_VALUES // max(1, quantized[0].numel() * taps))
        for start in range(0, len(quantized), held):
            q, f = (at_least_single(input_columns(layer, x[start : start + held])) for x in (quantized, original))
            self.gram = self.gram + (q @ q.transpose(1, 2)).cpu().double()
            self.cross = self.cross + (f @ q.transpose(1, 2)).cpu().double()
            self.quantized = self.quantized + q.sum(2).cpu().double()
            self.original = self.original + f.sum(2).cpu().double()
            self.count += q.shape[2]

    @property
    def finite(self) -> bool:
        """Whether neither NaN nor infinity was among them."""
        return all(bool(total.isfinite().all()) for total in (self.gram, self.cross))


def at_least_single(values: Tensor) -> Tensor:
    """Values of half the precision as float32: sums over many do not fit into less."""
    return values if values.dtype == torch.float64 else values.float()


class Feedback:
    """What is known of one layer's inputs, ready to quantize its weights.

    Args:
        moments: sums over its inputs; at least one.
        weight: the layer's weight; only its shape is used.
    """

    def __init__(self, moments: Moments, weight: Tensor) -> None:
        groups, d = moments.quantized.shape
        self._shape, self._transposed = weight.shape, False
        self._view = (groups, weight.shape[0] // groups, d)
        self._gram, self._cross = moments.gram / moments.count, moments.cross / moments.count
        self._means = (moments.original / moments.count)[:, :, None], (moments.quantized / moments.count)[:, :, None]
        energy = self._gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
        self._unit = torch.eye(d, dtype=torch.float64) * (energy + 1e-10)

    def seen_as(self, shape: torch.Size, transposed: bool) -> Feedback:
        """The same for weights of another shape: of one with other dimensions of 1, or of a transposed matrix."""
        other = copy.copy(self)
        other._shape, other._transposed = shape, transposed
        return other

    def _rows(self, weight: Tensor) -> Tensor:
        """(groups, outputs of one, d) float64."""
        return (weight.T if self._transposed else weight).double().reshape(self._view)

    def _tensor(self, rows: Tensor) -> Tensor:
        """The inverse, in the given shape."""
        return rows.reshape(self._shape[::-1]).T.contiguous() if self._transposed else rows.reshape(self._shape)

    def target(self, weight: Tensor) -> Tensor:
        """The weights that give the original outputs on the quantized inputs, in the least squares; float32.

        No output's weights grow by more than MOST_GROWTH: inputs that have nearly died under quantization would ask for
        any factor, and what is left of them is noise.
        """
        damping = TARGET_DAMPING * self._unit
        own = self._rows(weight)
        right = own @ (self._cross + damping)
        solved: Tensor = torch.linalg.solve(self._gram + damping, right.transpose(1, 2)).transpose(1, 2)
        most = MOST_GROWTH * own.norm(dim=2, keepdim=True)
        solved *= (most / solved.norm(dim=2, keepdim=True).clamp(min=1e-300)).clamp(max=1.0)
        return self._tensor(solved).float()

    def bias_correction(self, weight: Tensor, quantized: Tensor) -> Tensor:
        """(outputs,) float32: what to add to the bias so that the mean output is that of the original layer."""
        before = self._rows(weight) @ self._means[0]
        after = self._rows(quantized) @ self._means[1]
        return (before - after).reshape(-1).float()

    def codes(
        self,
        weight: Tensor,
        reference: Tensor,
        step: float,
        rounding: Rounding,
        damping: float = ROUNDING_DAMPING,
    ) -> Tensor:
        """Round `weight - reference` to multiples of a step, with feedback.

        Args:
            weight: in the layer's shape.
            reference: likewise; what the weight is predicted by.
            step: larger than 0, in units of weight.
            rounding: of levels to codes.
            damping: share of the mean input energy that is added to every input.

        Returns:
            int64 codes in the layer's shape.
        """
        groups, rows, d = self._view
        gram = self._gram + damping * self._unit
        order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        by_row = order[:, None, :].expand(self._view)
        square = order[:, :, None].expand(-1, -1, d), order[:, None, :].expand(-1, d, -1)
        gram = gram.gather(1, square[0]).gather(2, square[1])
        # Row j of this factor, divided by its diagonal, tells how an error in weight j is shared by those after it.
        factor = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
        rest = self._rows(weight.double() - reference.double()).gather(2, by_row) / step
        codes = torch.empty_like(rest)
        for start in range(0, d, _BLOCK):
            block = slice(start, min(start + _BLOCK, d))
            errors = torch.empty(groups, rows, block.stop - start, dtype=torch.float64)
            for j in range(start, block.stop):
                level = rest[:, :, j]
                code = rounding(level)
                codes[:, :, j] = code
                error = (level - code) / factor[:, j, j, None]
                rest[:, :, j : block.stop] -= error[:, :, None] * factor[:, j, None, j : block.stop]
                errors[:, :, j - start] = error
            rest[:, :, block.stop :] -= errors @ factor[:, block, block.stop :]
        restored = torch.empty_like(codes).scatter_(2, by_row, codes)
        return self._tensor(restored).long()
