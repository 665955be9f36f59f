"""Merged batch norms: the same function, to a stated error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ilwp_plugin.errors import TensorError
from ilwp_plugin.method.batch_norm import merge_batch_norm, restored_batch_norm, round_batch_norm


@given(st.integers(1, 12), st.integers(0, 999), st.floats(-6, 6))
@settings(max_examples=60, deadline=None)
def test_error_bounds(mantissa: int, seed: int, exponent: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randn(16, generator=generator).double() * 2**exponent
    mean, shift, spread = (torch.randn(16, generator=generator).double() for _ in range(3))
    merged = round_batch_norm(scale, mean, shift, spread.abs(), mantissa, 1e-5)
    bound = 2.0 ** -(mantissa + 1)
    merged_scale, merged_shift = (torch.from_numpy(values).double() for values in (merged.scale, merged.shift))
    assert bool(((merged_scale - scale).abs() <= scale.abs() * bound * 1.0001).all())
    at_mean = merged_scale * mean + merged_shift
    spread_rms = float(spread.square().mean().sqrt())
    steps = max(spread_rms, float((shift - mean * scale).abs().max()) / (1 << 12) * 2**mantissa)
    assert float((at_mean - shift).abs().max()) <= bound * steps * 1.01 + 1e-6


def test_restores_into_the_same_class() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8).eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    scale, shift = merge_batch_norm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    merged = round_batch_norm(scale, norm.running_mean, norm.bias, norm.weight, 12, norm.eps)
    restored = nn.BatchNorm2d(8).eval()
    restored.load_state_dict(restored_batch_norm(merged))
    inputs = torch.randn(4, 8, 5, 5)
    assert torch.allclose(restored(inputs), norm(inputs), atol=5e-3)
    merged_scale, merged_shift = (torch.from_numpy(values)[:, None, None] for values in (merged.scale, merged.shift))
    expected = merged_scale * inputs + merged_shift
    assert torch.allclose(restored(inputs), expected, atol=1e-5)
    assert torch.allclose(scale.float() * 2 + shift.float(), (norm(torch.full((1, 8, 1, 1), 2.0))).flatten(), atol=1e-5)


def test_dead_and_extreme_channels() -> None:
    zero = torch.zeros(3)
    merged = round_batch_norm(torch.tensor([0.0, 1.0, 1e-9]), zero, zero, zero, 5, 1e-5)
    assert merged.scale.tolist() == [0.0, 1.0, 0.0], "2^24 below the largest counts as nothing"
    with pytest.raises(TensorError, match="NaN or infinite"):
        round_batch_norm(torch.tensor([float("nan")]), zero[:1], zero[:1], zero[:1], 5, 1e-5)
    with pytest.raises(TensorError, match="out of range"):
        round_batch_norm(torch.tensor([2.0**110]), zero[:1], zero[:1], zero[:1], 5, 1e-5)
