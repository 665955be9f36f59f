"""Tensors on a uniform grid: integer codes times a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.dtypes import DTYPES, cast, is_finite

__all__ = ["LARGEST_CODE", "IntegerTensor", "kernel_residual", "kernel_sum", "largest_magnitude"]

_PIECE = 1 << 18
"""Values that are computed at one time."""

LARGEST_CODE = (1 << 15) - 1
"""Codes, and their differences from zero points and references, are at most this in magnitude."""


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

    >>> codes = np.array([[1, -2], [3, 0]], dtype=np.int8)
    >>> IntegerTensor(codes, np.array([0.5, 2.0])).restore()
    array([[ 0.5, -1. ],
           [ 6. ,  0. ]], dtype=float32)
    """

    codes: NDArray[Any]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64] | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        codes, scale = np.asarray(self.codes), np.asarray(self.scale)
        zero_point = None if self.zero_point is None else np.asarray(self.zero_point)
        for what in (codes, zero_point):
            if what is not None and not np.issubdtype(what.dtype, np.integer):
                raise TensorError(
                    f"integer tensor: expected codes and zero points of an integer dtype, got {what.dtype}"
                )
        axis = self.axis + codes.ndim if self.axis < 0 else self.axis
        if scale.size > 1 and not (0 <= axis < codes.ndim and scale.size == codes.shape[axis]):
            raise TensorError(
                f"integer tensor: {scale.size} scales for codes of shape {codes.shape} along axis {self.axis}"
            )
        if zero_point is not None and zero_point.size != scale.size:
            raise TensorError(f"integer tensor: {zero_point.size} zero points for {scale.size} scales")
        scale = scale.astype(np.float32).reshape(() if scale.size == 1 else -1) + np.float32(0)
        if scale.size == 0 or not bool((np.isfinite(scale) & (scale >= 0)).all()):
            raise TensorError("integer tensor: expected finite scales >= 0")
        object.__setattr__(self, "scale", np.asarray(scale, np.float32))
        object.__setattr__(self, "axis", axis if scale.ndim else 0)
        _check_range("codes", codes)
        fixed = codes.dtype == np.int16 and not codes.flags.writeable  # nobody can change them: no copy
        object.__setattr__(self, "codes", codes if fixed else codes.astype(np.int16))
        if zero_point is not None:
            zero_point = zero_point.astype(np.int64).reshape(scale.shape)
            _check_range("zero points", zero_point)
            object.__setattr__(self, "zero_point", zero_point)
            _check_range("differences", self._centred)

    @classmethod
    def from_centred(
        cls, centred: NDArray[Any], scale: NDArray[np.float32], zero_point: NDArray[np.int64] | None, axis: int
    ) -> IntegerTensor:
        """From `codes - zero_point` instead of the codes.

        Args:
            centred: integers, any shape.
            scale, zero_point, axis: see `IntegerTensor`.
        """
        if zero_point is None:
            return cls(centred, scale, None, axis)
        return cls(centred.astype(np.int64) + along(zero_point, centred.ndim, axis), scale, zero_point, axis)

    @property
    def _centred(self) -> NDArray[Any]:
        if self.zero_point is None:
            return self.codes
        return np.asarray(self.codes.astype(np.int64) - along(self.zero_point, self.codes.ndim, self.axis))

    @property
    def centred(self) -> NDArray[np.int16]:
        """`codes - zero_point`: int16 in the tensor's shape."""
        return self._centred.astype(np.int16, copy=False)

    def restore(self) -> NDArray[np.float32]:
        """The values: float32 in the tensor's shape."""
        return np.asarray(self.centred.astype(np.float32) * along(self.scale, self.codes.ndim, self.axis))

    def restore_as(self, dtype: str) -> NDArray[Any]:
        """The same in another real dtype, carried; in little memory besides."""
        if self.codes.size <= _PIECE:
            return cast(self.restore(), dtype)
        rows = max(1, _PIECE // self.codes[:1].size)
        restored = np.empty(self.codes.shape, DTYPES[dtype].carrier)
        per_row = self.scale.ndim and self.axis == 0
        for start in range(0, len(self.codes), rows):
            part = slice(start, start + rows)
            scale = self.scale[part] if per_row else self.scale
            points = self.zero_point[part] if per_row and self.zero_point is not None else self.zero_point
            codes = self.codes[part] if points is None else self.codes[part] - along(points, self.codes.ndim, self.axis)
            values = codes.astype(np.float32) * along(scale, self.codes.ndim, self.axis)
            restored[part] = cast(values, dtype)
        return restored

    def fits(self, dtype: str) -> bool:
        """Whether the values are finite in float32 and in another real dtype."""
        with np.errstate(over="ignore"):
            return is_finite(self.restore_as(dtype), dtype)


def along(values: NDArray[Any], ndim: int, axis: int) -> NDArray[Any]:
    """One number as it is, several in a shape that runs along an axis of `ndim`."""
    if values.ndim == 0:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def largest_magnitude(values: NDArray[Any]) -> int:
    """Of integers in any shape, 0 of none; `abs` of the lowest integer of a dtype would overflow."""
    return max(-int(values.min()), int(values.max())) if values.size else 0


def _check_range(what: str, values: NDArray[Any]) -> None:
    if largest_magnitude(values) > LARGEST_CODE:
        raise TensorError(f"integer tensor: {what} beyond {LARGEST_CODE} in magnitude")


def kernel_residual(codes: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.int32]:
    """What is left of the codes of a layer after collocated prediction, without loss.

    Args:
        codes: (c, 1, h, w) integers, of magnitude at most 32,767 like those of the reference.
        reference: (c', 1, h, w) integers, another layer; kernel j is predicted by its kernel j mod c'.

    Returns:
        (c, 1, h, w) int32.
    """
    result: NDArray[np.int32] = codes.astype(np.int32) - reference[np.arange(len(codes)) % len(reference)]
    return result


def kernel_sum(residual: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.int32]:
    """The inverse of `kernel_residual`."""
    result: NDArray[np.int32] = residual.astype(np.int32) + reference[np.arange(len(residual)) % len(reference)]
    return result
