"""Tensors on a uniform grid: integer codes times a scale, as toolkits quantize and as the other layers are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ilwp_plugin.errors import TensorError
from ilwp_plugin.method.rounding import check_step, dead_zone_rounding

__all__ = ["LARGEST_CODE", "IntegerTensor", "kernel_residual", "kernel_sum", "largest_magnitude", "round_to_grid"]

LARGEST_CODE = (1 << 15) - 1
"""Codes, and their differences from zero points and references, are at most this in magnitude."""

_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@dataclass(frozen=True, eq=False)
class IntegerTensor:
    """A tensor as integer codes: its values are `(codes - zero_point) * scale`, computed in float32.

    Attributes:
        codes: integers, in the tensor's shape, of magnitude at most 32,767; they are kept as int16.
        scale: float32, one number, or one for each index of `axis`; finite, not negative.
        zero_point: integers, as many as scales; None for zeros.
        axis: the dimension that the scales belong to.

    Raises:
        TensorError: any of this does not hold.

    >>> codes = torch.tensor([[1, -2], [3, 0]], dtype=torch.int8)
    >>> IntegerTensor(codes, torch.tensor([0.5, 2.0])).restore()
    tensor([[ 0.5000, -1.0000],
            [ 6.0000,  0.0000]])
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        codes, scale = torch.as_tensor(self.codes).detach().cpu(), torch.as_tensor(self.scale).detach().cpu()
        zero_point = None if self.zero_point is None else torch.as_tensor(self.zero_point).detach().cpu()
        if codes.dtype not in _INTEGERS or (zero_point is not None and zero_point.dtype not in _INTEGERS):
            raise TensorError(f"integer tensor: expected codes and zero points of an integer dtype, got {codes.dtype}")
        axis = self.axis + codes.dim() if self.axis < 0 else self.axis
        if scale.numel() > 1 and not (0 <= axis < codes.dim() and scale.numel() == codes.shape[axis]):
            raise TensorError(
                f"integer tensor: {scale.numel()} scales for codes of shape {tuple(codes.shape)} along axis {self.axis}"
            )
        if zero_point is not None and zero_point.numel() != scale.numel():
            raise TensorError(f"integer tensor: {zero_point.numel()} zero points for {scale.numel()} scales")
        scale = scale.float().reshape(-1 if scale.numel() > 1 else ()) + 0.0
        if scale.numel() == 0 or not bool((scale.isfinite() & (scale >= 0)).all()):
            raise TensorError("integer tensor: expected finite scales >= 0")
        if zero_point is not None:
            zero_point = zero_point.to(torch.int64).reshape(scale.shape)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)
        object.__setattr__(self, "axis", axis if scale.dim() else 0)
        _check_range("codes", codes)
        object.__setattr__(self, "codes", codes.to(torch.int16))
        if zero_point is not None:
            _check_range("zero points", zero_point)
            _check_range("differences", self._centred)

    @classmethod
    def from_centred(cls, centred: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> IntegerTensor:
        """From `codes - zero_point` instead of the codes."""
        if zero_point is None:
            return cls(centred, scale, None, axis)
        shape = [1] * centred.dim()
        if zero_point.numel() > 1:
            shape[axis] = -1
        return cls(centred + zero_point.reshape(shape), scale, zero_point, axis)

    def _along(self, values: Tensor) -> Tensor:
        if values.dim() == 0:
            return values
        shape = [1] * self.codes.dim()
        shape[self.axis] = -1
        return values.reshape(shape)

    @property
    def _centred(self) -> Tensor:
        return self.codes if self.zero_point is None else self.codes.long() - self._along(self.zero_point)

    @property
    def centred(self) -> Tensor:
        """`codes - zero_point`: int16 in the tensor's shape."""
        return self._centred.to(torch.int16)

    def restore(self) -> Tensor:
        """The values: float32 in the tensor's shape."""
        return self.centred.float().mul_(self._along(self.scale))

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether the values are finite in float32 and in another floating-point dtype."""
        limit = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
        if LARGEST_CODE * float(self.scale.max()) <= limit:
            return True
        return bool(self.restore().to(dtype).isfinite().all())


def largest_magnitude(values: Tensor) -> int:
    """Of integers in any shape, 0 of none; `abs` of the lowest integer of a dtype would overflow."""
    if not values.numel():
        return 0
    low, high = values.aminmax()
    return max(-int(low), int(high))


def _check_range(what: str, values: Tensor) -> None:
    if largest_magnitude(values) > LARGEST_CODE:
        raise TensorError(f"integer tensor: {what} beyond {LARGEST_CODE} in magnitude")


def round_to_grid(weight: Tensor, step: float, dead_zone: float = 0.5) -> IntegerTensor:
    """The nearest codes on a grid with one absolute step.

    Args:
        weight: any shape, floating-point.
        step: distance of two levels, in units of weight; larger than 0.
        dead_zone: what is smaller than this many steps becomes 0; 0.5 is plain rounding.

    Raises:
        StepError: a weight lies beyond the 32,767th level.
    """
    scale = torch.tensor(step, dtype=torch.float32)
    values = weight.detach().cpu().float()
    check_step(values, float(scale), LARGEST_CODE)
    codes = dead_zone_rounding(dead_zone)(values / scale)
    return IntegerTensor(codes.to(torch.int64), scale)


def kernel_residual(codes: Tensor, reference: Tensor) -> Tensor:
    """What is left of the codes of a layer after collocated prediction, without loss.

    Args:
        codes: (c, 1, h, w) integers, of magnitude at most 32,767 like those of the reference.
        reference: (c', 1, h, w) integers, another layer; kernel j is predicted by its kernel j mod c'.

    Returns:
        (c, 1, h, w) int32.
    """
    return codes.int() - reference[torch.arange(len(codes)) % len(reference)]


def kernel_sum(residual: Tensor, reference: Tensor) -> Tensor:
    """The inverse of `kernel_residual`."""
    return residual.int() + reference[torch.arange(len(residual)) % len(reference)]
