import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from ilwp_plugin.method.quantization import (
    BITS,
    STEP_RULES,
    as_kernels,
    largest_code,
    quantize_residual,
    stored_anchor,
    straight_through,
)

VALUES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-100, 100, width=32)
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(VALUES, st.sampled_from(BITS))
def test_error_is_at_most_half_a_step(values: NDArray[np.float32], bits: int) -> None:
    residual = torch.from_numpy(values)
    codes, step = quantize_residual(residual, largest_code(bits), STEP_RULES["max"])
    assert float((residual.double() - codes.double() * step.double()).abs().max()) <= float(step) / 2 * (1 + 1e-5)
    assert float(codes.abs().max()) <= largest_code(bits)
    assert torch.equal(codes, codes.round())
    assert not torch.signbit(codes[codes == 0]).any()


@given(VALUES, st.sampled_from(BITS), st.sampled_from(list(STEP_RULES)))
def test_quantizer_is_symmetric_and_keeps_zero(values: NDArray[np.float32], bits: int, rule: str) -> None:
    residual = torch.from_numpy(values)
    codes, step = quantize_residual(residual, largest_code(bits), STEP_RULES[rule])
    mirrored, mirrored_step = quantize_residual(-residual, largest_code(bits), STEP_RULES[rule])
    assert torch.equal(codes, -mirrored + 0.0) and torch.equal(step, mirrored_step)
    assert (codes[residual == 0] == 0).all()


@pytest.mark.parametrize("rule", list(STEP_RULES))
def test_zeros_have_step_zero(rule: str) -> None:
    codes, step = quantize_residual(torch.zeros(3, 9), 127, STEP_RULES[rule])
    assert float(step) == 0 and not codes.any()


def squared_error(residual: Tensor, bits: int, rule: str) -> float:
    codes, step = quantize_residual(residual, largest_code(bits), STEP_RULES[rule])
    return float((residual - codes * step).square().sum())


@pytest.mark.parametrize("bits", BITS)
def test_mse_rule_beats_the_others(bits: int) -> None:
    residual = random(500, 9).pow(3)
    assert squared_error(residual, bits, "mse") <= squared_error(residual, bits, "max")
    assert squared_error(residual, bits, "mse") <= squared_error(residual, bits, "percentile") * 1.001


def test_percentile_rule_ignores_an_outlier() -> None:
    residual = random(1000, 9)
    residual[0, 0] = 1e6
    assert float(STEP_RULES["percentile"](residual, 127)) < 1
    sparse = torch.zeros(10000, 9)
    sparse[0, 0] = 1
    assert float(STEP_RULES["percentile"](sparse, 127)) == pytest.approx(1 / 127)


def test_stored_anchor() -> None:
    kernels = random(3, 9)
    stored = {
        (str(dtype), anchor): stored_anchor(kernels, dtype, anchor)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        for anchor in ("fp32", "fp16", "quantized")
    }
    dtypes = {key: None if value is None else value.dtype for key, value in stored.items()}
    assert dtypes["torch.float32", "fp32"] == dtypes["torch.float64", "fp32"] == torch.float32
    assert dtypes["torch.float32", "fp16"] == dtypes["torch.float16", "fp32"] == torch.float16
    assert dtypes["torch.bfloat16", "fp32"] == dtypes["torch.bfloat16", "fp16"] == torch.bfloat16
    assert {dtypes[key] for key in dtypes if key[1] == "quantized"} == {None}


def test_kernels_have_no_negative_zeros() -> None:
    assert not torch.signbit(as_kernels(torch.tensor([[[[-0.0, 0.0]]]]), 2)).any()


def test_straight_through() -> None:
    weight = random(2, 3).requires_grad_()
    value = random(2, 3, seed=1)
    result = straight_through(weight, value)
    assert torch.equal(result, value)
    gradient = random(2, 3, seed=2)
    result.backward(gradient)
    assert weight.grad is not None and torch.equal(weight.grad, gradient)
