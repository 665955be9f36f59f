import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from ilwp_plugin.method.prediction import PREDICTORS
from ilwp_plugin.method.quantization import (
    BITS,
    STEP_RULES,
    as_kernels,
    largest_code,
    quantize_chain,
    quantize_layer,
    quantize_residual,
    reconstruct,
    stored_anchor,
    straight_through,
)

VALUES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-100, 100, width=32)
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chain(*counts: int) -> list[Tensor]:
    return [random(count, 9, seed=i) for i, count in enumerate(counts)]


def choose(mode: str):  # type: ignore[no-untyped-def]
    return lambda _, layer, earlier: PREDICTORS[mode].references(layer, earlier)


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


@pytest.mark.parametrize("mode", ["none", "collocated", "local", "full"])
@pytest.mark.parametrize("anchored", [True, False])
def test_loop_is_closed(mode: str, anchored: bool) -> None:
    """References are reconstructed kernels, so that the decoder, which has only these, finds the same values."""
    kernels = chain(4, 8, 6, 12)
    anchor = kernels[0] if anchored else None
    layers, restored = quantize_chain(kernels, anchor, choose(mode), 4, STEP_RULES["max"])
    decoded = [] if anchor is None else [anchor]
    for layer in layers:
        decoded.append(reconstruct(layer, torch.cat(decoded) if decoded else torch.empty(0, 9)))
    assert all(torch.equal(a, b) for a, b in zip(decoded, restored, strict=True))
    for layer, original, value in zip(layers[::-1], kernels[::-1], restored[::-1], strict=False):
        assert float((original - value).abs().max()) <= layer.step / 2 * (1 + 1e-4), "errors do not add up"


def test_open_loop_would_drift() -> None:
    """The reason for the closed loop: with unquantized references the errors of a long chain add up."""
    kernels = [random(16, 9)]
    for i in range(1, 30):
        kernels.append(kernels[-1] + 0.3 * random(16, 9, seed=i))
    layers, restored = quantize_chain(kernels, kernels[0], choose("collocated"), 3, STEP_RULES["max"])
    drifted = kernels[0]
    for before, layer in itertools.pairwise(kernels):
        codes, step = quantize_residual(layer - before, largest_code(3), STEP_RULES["max"])
        drifted = drifted + codes * step
    assert float((drifted - kernels[-1]).abs().max()) > 2 * float((restored[-1] - kernels[-1]).abs().max())
    assert len(layers) == 29


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


def test_pruned_weights_stay_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(8, 9, generator=generator)
    layer = torch.randn(8, 9, generator=generator)
    before[:4], layer[torch.rand(8, 9, generator=generator) < 0.5] = 0, 0
    quantized = quantize_layer(layer, torch.arange(8), before, 4, STEP_RULES["max"])
    restored = reconstruct(quantized, before)
    pruned = layer == 0
    assert bool((restored[pruned] == 0).all())
    assert bool(((restored - layer)[~pruned].abs() <= quantized.step / 2 + 1e-6).all())
    assert bool((quantized.codes[pruned] == 0).all()) and quantized.zeros is not None
    assert int(quantized.codes[~pruned].abs().max()) == largest_code(4)
    dense = quantize_layer(layer + 1e-3, torch.arange(8), before, 4, STEP_RULES["max"])
    assert int(dense.codes.max()) <= largest_code(4)
