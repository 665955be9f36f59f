"""Batch norms as they act at inference: one scale and one shift a channel instead of four numbers.

`y = (x - mean) / sqrt(var + eps) * weight + bias` is `y = scale * x + shift`. The scale is rounded to a few bits of
mantissa, so that its relative error is bounded, and the shift to a grid whose step is a share of the output's spread.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.norms import MANTISSA_BITS, OCTAVES, MergedBatchNorm

__all__ = [
    "MANTISSA_BITS",
    "MergedBatchNorm",
    "merge_batch_norm",
    "restored_batch_norm",
    "round_batch_norm",
    "round_mantissa",
]

_LARGEST_SHIFT = (1 << 12) - 1
"""Codes of shifts; a layer whose shifts are far larger than its spread gets a coarser step."""


def restored_batch_norm(merged: MergedBatchNorm) -> dict[str, Tensor]:
    """The buffers and parameters of a module of the same class that computes `scale * x + shift` in eval mode."""
    return {role: torch.from_numpy(np.array(value)) for role, value in merged.restore().items()}


def round_mantissa(values: Tensor, bits: int) -> Tensor:
    """Values with so many bits of mantissa: each relative error is at most 2^-(bits + 1).

    Args:
        values: floating-point, finite, any shape.
        bits: of mantissa, the leading one not counted.
    """
    fraction, exponent = torch.frexp(values.double())
    rounded = torch.ldexp(torch.round(fraction * (2 << bits)) / (2 << bits), exponent).to(values.dtype)
    return torch.where(rounded.isfinite(), rounded, values)


def merge_batch_norm(weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Scale and shift, (channels,) float64 each: what a batch norm computes at inference.

    Args:
        weight, bias: of the norm, (channels,).
        mean, variance: its running statistics, (channels,).
        eps: of the norm.
    """
    scale = weight.double() / torch.sqrt(variance.double() + eps)
    return scale, bias.double() - mean.double() * scale


def round_batch_norm(
    scale: Tensor, mean_input: Tensor, mean_output: Tensor, spread: Tensor, mantissa: int, eps: float
) -> MergedBatchNorm:
    """Round a batch norm; the mean of its output is kept, up to the rounding of the shift.

    Args:
        scale: (channels,), finite.
        mean_input: (channels,), of the inputs; likewise.
        mean_output: (channels,), the output at the mean of the inputs.
        spread: (channels,), standard deviation of the output; sets the step of the shift.
        mantissa: bits of a scale's mantissa: its relative error is at most 2^-(mantissa + 1), and the error of the
            shift at most 2^-(mantissa + 1) of the root mean square of the spread, or 2^-13 of the largest shift if
            that is more.
        eps: of the module.

    Raises:
        TensorError: a value that is not finite, or beyond the range of the codes.
    """
    given = (scale, mean_input, mean_output, spread)
    scale, mean_input, mean_output, spread = (values.detach().double().cpu() for values in given)
    if not all(bool(values.isfinite().all()) for values in (scale, mean_input, mean_output, spread)):
        raise TensorError("batch norm: scale or shift is NaN or infinite")
    fraction, exponent = torch.frexp(scale.abs())  # scale = fraction * 2^exponent, fraction from 1/2 to 1
    fraction = torch.round(fraction * (2 << mantissa)).long()  # from 2^m to 2^(m + 1), both included
    exponent = exponent.long() - 1
    carry = fraction == 2 << mantissa
    fraction = torch.where(carry, 1 << mantissa, fraction)
    exponent = exponent + carry.long()
    used = scale != 0
    highest = int(exponent[used].max()) if bool(used.any()) else 0
    used &= exponent > highest - OCTAVES
    lowest = int(exponent[used].min()) if bool(used.any()) else 0
    if not -100 <= lowest <= highest <= 100:
        raise TensorError(f"batch norm: scales from 2^{lowest} to 2^{highest} are out of range")
    codes = 1 + (exponent - lowest) * (1 << mantissa) + fraction - (1 << mantissa)
    codes = torch.where(used, codes, 0) * scale.sign().long()
    half = MergedBatchNorm(codes.numpy(), codes.numpy(), lowest, mantissa, 0.0, eps)
    shift = mean_output - mean_input * torch.from_numpy(half.scale).double()
    step = torch.tensor(float(spread.square().mean().sqrt()) * 2.0**-mantissa, dtype=torch.float32)
    step = torch.maximum(step, (shift.abs().max() / _LARGEST_SHIFT).float())
    shift_codes = torch.round(shift / step.double()).long() if float(step) > 0 else torch.zeros_like(codes)
    return MergedBatchNorm(codes.numpy(), shift_codes.numpy(), lowest, mantissa, float(step), float(torch.tensor(eps)))
