"""Closed-loop linear quantization of the residuals of a chain, and its inverse.

The encoder predicts from *reconstructed* kernels, so that the decoder, which has only these, sees the same references
and errors do not drift: `Khat[i, j] = code * step[i] + Khat[reference]`.

All arithmetic is float32, one operation at a time in a fixed order, so that every machine restores the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ilwp_plugin.method.prediction import gather_references
from ilwp_plugin.registry import Registry

__all__ = [
    "BITS",
    "CODE_BITS",
    "KernelPool",
    "STEP_RULES",
    "QuantizedLayer",
    "as_kernels",
    "bits_for",
    "keep_zeros",
    "largest_code",
    "quantize_residual",
    "reconstruct",
    "stored_anchor",
    "straight_through",
]

BITS = range(2, 9)
"""The bit widths of the paper, from which a range rule makes the step of a layer."""

CODE_BITS = range(2, 16)
"""The bit widths that a file holds: a layer whose step is given has as many as its codes need."""

StepRule = Callable[[Tensor, int], Tensor]
"""(residual, largest code) -> step, a float32 scalar >= 0; 0 only where every code is to be 0."""

STEP_RULES: Registry[StepRule] = Registry("range")
"""Rules that choose a step for a number of bits, by the name that the field `range` gives them."""

_PERCENTILE = 0.999
_MSE_CANDIDATES = 64


def largest_code(bits: int) -> int:
    """Codes of `bits` bits run from minus this to plus this; zero is a level, and the grid is symmetric."""
    return (1 << (bits - 1)) - 1


@STEP_RULES.register("max")
def step_by_max(residual: Tensor, largest: int) -> Tensor:
    """The largest magnitude is the largest code: no residual is clipped."""
    return residual.abs().max() / largest


@STEP_RULES.register("percentile")
def step_by_percentile(residual: Tensor, largest: int) -> Tensor:
    """The 99.9th percentile (nearest rank) of the magnitudes is the largest code; what is above it is clipped."""
    magnitudes = residual.abs().flatten()
    rank = max(1, math.ceil(_PERCENTILE * magnitudes.numel()))
    step = magnitudes.kthvalue(rank).values / largest
    # Sparse residuals can have their percentile at zero, which would lose the few that are not.
    return torch.where(step > 0, step, step_by_max(residual, largest))


@STEP_RULES.register("mse")
def step_by_mse(residual: Tensor, largest: int) -> Tensor:
    """Of 64 steps up to that of `max`, the one with the least squared error, clipping included."""
    widest = step_by_max(residual, largest)
    best_step, best_error = widest, math.inf
    for i in range(_MSE_CANDIDATES, 0, -1):
        step = widest * (i / _MSE_CANDIDATES)
        codes, step = quantize_residual(residual, largest, lambda *_, step=step: step)
        error = float((residual - codes * step).double().square().sum())
        if error < best_error:
            best_step, best_error = step, error
    return best_step


def quantize_residual(residual: Tensor, largest: int, rule: StepRule) -> tuple[Tensor, Tensor]:
    """Uniform symmetric quantization of one layer's residuals.

    Args:
        residual: any shape, float32.
        largest: largest code, see `largest_code`.
        rule: one of `STEP_RULES`.

    Returns:
        codes, whole numbers in float32 of the residual's shape, and the step, a float32 scalar. With the rule "max"
        `|residual - codes * step| <= step / 2`.
    """
    step = rule(residual, largest)
    codes = torch.round(residual / torch.where(step > 0, step, 1.0)).clamp(-largest, largest)
    # Adding 0.0 turns the negative zeros of rounding into zeros, so that equal codes are equal bits.
    return torch.where(step > 0, codes + 0.0, 0.0), step


def bits_for(codes: Tensor) -> int:
    """The fewest bits, 2 to 15, that hold codes of at most 16,383 in magnitude."""
    largest = int(codes.abs().max())
    return next(bits for bits in CODE_BITS if largest <= largest_code(bits))


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """One predicted layer.

    Attributes:
        codes: (kernels, taps) int16, of magnitude at most `largest_code(bits)`.
        step: float32 value >= 0, in units of weight.
        bits: 2..15.
        references: (kernels,) int64 kernel numbers, see `method.prediction`.
        zeros: (kernels, taps) bool, weights that are exactly 0, whatever predicts them; their codes are 0. Or None.
    """

    codes: Tensor
    step: float
    bits: int
    references: Tensor
    zeros: Tensor | None = None


def reconstruct(layer: QuantizedLayer, pool: Tensor) -> Tensor:
    """`Khat = codes * step + reference`, or 0 where the layer says so.

    Args:
        layer: the quantized layer.
        pool: (m, taps) float32, the reconstructed kernels of all earlier layers, in order.

    Returns:
        (kernels, taps) float32.
    """
    residual = layer.codes.float() * torch.tensor(layer.step, dtype=torch.float32)
    restored = residual + gather_references(pool, layer.references)
    return restored if layer.zeros is None else restored.masked_fill(layer.zeros.to(restored.device), 0.0)


class KernelPool:
    """The reconstructed kernels of a chain, as it grows: one tensor, so that long chains are not copied each time."""

    def __init__(self, kernels: int, taps: int, device: torch.device | str = "cpu") -> None:
        self._all = torch.empty(kernels, taps, device=device)
        self._filled = 0
        self.layers: list[Tensor] = []
        """(kernels, taps) of each layer so far."""

    @classmethod
    def of(cls, layers: Sequence[Tensor], taps: int, device: torch.device | str = "cpu") -> KernelPool:
        """A pool that holds some layers.

        Args:
            layers: (kernels, taps) each.
            taps: weights of a kernel.
            device: where they are held.
        """
        pool = cls(sum(map(len, layers)), taps, device)
        for layer in layers:
            pool.append(layer)
        return pool

    @property
    def filled(self) -> Tensor:
        """(m, taps): the kernels of all layers so far."""
        return self._all[: self._filled]

    def append(self, layer: Tensor) -> None:
        """Add a layer."""
        start, self._filled = self._filled, self._filled + len(layer)
        self._all[start : self._filled] = layer
        self.layers.append(self._all[start : self._filled])


def as_kernels(weight: Tensor, taps: int) -> Tensor:
    """A weight as the codec sees it: (kernels, taps) float32 on its device, without negative zeros."""
    return weight.detach().float().reshape(-1, taps) + 0.0


def stored_anchor(kernels: Tensor, dtype: torch.dtype, anchor: str) -> Tensor | None:
    """The anchor as the file stores it.

    Args:
        kernels: (kernels, taps) float32.
        dtype: of the weight; its 16 bits are kept where it has no more.
        anchor: "fp32", "fp16" or "quantized".

    Returns:
        The kernels in the dtype that is stored, or None for an anchor that is quantized like the other layers.
    """
    if anchor == "quantized":
        return None
    if dtype.itemsize == 2:
        return kernels.to(dtype)
    return kernels.to(torch.float16 if anchor == "fp16" else torch.float32)


_MANY_ZEROS = 0.25


def keep_zeros(kernels: Tensor, references: Tensor) -> tuple[Tensor, Tensor | None]:
    """How the exact zeros of a layer, as masks of pruning leave them, stay exactly zero.

    Args:
        kernels: (kernels, taps).
        references: (kernels,) int64, see `method.prediction`.

    Returns:
        The references, none where all is zero, and a map of the zeros, (kernels, taps) bool; None where there are none,
        or few and a prediction by zero keeps them anyway.
    """
    zeros = kernels == 0
    share = float(zeros.double().mean())
    if share == 1:
        return torch.full_like(references, -1), None
    predicted = bool((references >= 0).any())
    return references, zeros if share > 0 and (predicted or share >= _MANY_ZEROS) else None


class _StraightThrough(torch.autograd.Function):
    """The value of one tensor with the gradient of another; `x + (y - x).detach()` would round once more."""

    @staticmethod
    def forward(ctx: object, source: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(weight: Tensor, reconstruction: Tensor) -> Tensor:
    """The reconstruction, bit for bit, whose gradient goes to the weight unchanged (straight-through estimator).

    In a closed-loop chain every kernel's gradient goes to the kernel itself, not to its reference.

    Args:
        weight: any shape; receives the gradient.
        reconstruction: same shape and dtype.
    """
    result: Tensor = _StraightThrough.apply(weight, reconstruction)  # type: ignore[no-untyped-call]
    return result
