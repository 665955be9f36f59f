import itertools

import pytest
import torch
from torch import Tensor

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import StepError
from ilwp_plugin.method.prediction import collocated_references
from ilwp_plugin.method.quantization import (
    STEP_RULES,
    KernelPool,
    QuantizedLayer,
    largest_code,
    quantize_residual,
    reconstruct,
)
from ilwp_plugin.recipes.layer_quantizer import quantize_layer


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantize_chain(
    kernels: list[Tensor], config: IlwpConfig, anchored: bool
) -> tuple[list[QuantizedLayer], list[Tensor]]:
    pool = KernelPool(sum(map(len, kernels)), 9)
    layers = []
    if anchored:
        pool.append(kernels[0])
    for layer in kernels[anchored:]:
        layers.append(quantize_layer(layer, pool, config))
        pool.append(reconstruct(layers[-1], pool.filled))
    return layers, pool.layers


@pytest.mark.parametrize("mode", ["none", "collocated", "local", "full"])
@pytest.mark.parametrize("anchored", [True, False])
def test_loop_is_closed(mode: str, anchored: bool) -> None:
    """References are reconstructed kernels, so that the decoder, which has only these, finds the same values."""
    kernels = [random(count, 9, seed=i) for i, count in enumerate((4, 8, 6, 12))]
    layers, restored = quantize_chain(kernels, IlwpConfig.paper(mode=mode, bits=4), anchored)
    decoded = kernels[:1] if anchored else []
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
    layers, restored = quantize_chain(kernels, IlwpConfig.paper(bits=3), True)
    drifted = kernels[0]
    for before, layer in itertools.pairwise(kernels):
        codes, step = quantize_residual(layer - before, largest_code(3), STEP_RULES["max"])
        drifted = drifted + codes * step
    assert float((drifted - kernels[-1]).abs().max()) > 2 * float((restored[-1] - kernels[-1]).abs().max())
    assert len(layers) == 29


def test_pruned_weights_stay_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(8, 9, generator=generator)
    layer = torch.randn(8, 9, generator=generator)
    before[:4], layer[torch.rand(8, 9, generator=generator) < 0.5] = 0, 0
    pool = KernelPool.of([before], 9)
    quantized = quantize_layer(layer, pool, IlwpConfig.paper(bits=4))
    restored = reconstruct(quantized, before)
    pruned = layer == 0
    assert bool((restored[pruned] == 0).all())
    assert bool(((restored - layer)[~pruned].abs() <= quantized.step / 2 + 1e-6).all())
    assert bool((quantized.codes[pruned] == 0).all()) and quantized.zeros is not None
    assert int(quantized.codes[~pruned].abs().max()) == largest_code(4)
    dense = quantize_layer(layer + 1e-3, pool, IlwpConfig.paper(bits=4))
    assert int(dense.codes.max()) <= largest_code(4)


@pytest.mark.parametrize("rate_weight", [0.0, 0.2])
def test_auto_takes_the_fewest_bits_at_one_step(rate_weight: float) -> None:
    before = [random(12, 9), random(12, 9, seed=1)]
    pool = KernelPool.of(before, 9)
    config = IlwpConfig.paper(mode="auto", residual_step=0.05, rate_weight=rate_weight)
    near = quantize_layer(before[1] + 0.02 * random(12, 9, seed=2), pool, config)
    assert torch.equal(near.references, collocated_references(12, [12, 12]))
    strange = quantize_layer(0.1 * random(12, 9, seed=3), pool, config)
    assert bool((strange.references == -1).all()) and strange.step == near.step == pytest.approx(0.05)


def test_auto_weighs_errors_against_bits() -> None:
    """Under a clipping rule a mode can save bits by cutting residuals: that must not make it the best one."""
    before = [10 * random(64, 9)]
    layer = random(64, 9, seed=1)
    for rule in STEP_RULES:
        config = IlwpConfig.paper(mode="auto", range=rule)
        best, plain = (
            quantize_layer(layer, KernelPool.of(before, 9), config.replace(mode=mode)) for mode in ("auto", "none")
        )
        errors = [float((layer - reconstruct(choice, before[0])).double().square().sum()) for choice in (best, plain)]
        assert errors[0] <= 1.1 * errors[1], rule


@pytest.mark.parametrize("mode", ["none", "collocated", "local", "full", "auto"])
def test_a_given_step_is_held_whatever_the_codes(mode: str) -> None:
    before, layer = [random(16, 9)], random(16, 9, seed=1)
    for step in (0.5, 0.1, 0.01, 1e-3):
        quantized = quantize_layer(layer, KernelPool.of(before, 9), IlwpConfig.paper(mode=mode, residual_step=step))
        error = (layer - reconstruct(quantized, before[0])).abs().max()
        assert float(error) <= step / 2 * (1 + 1e-3)
        assert int(quantized.codes.abs().max()) <= largest_code(quantized.bits)
    assert quantized.bits > 8


@pytest.mark.parametrize("mode", ["none", "collocated", "auto"])
@pytest.mark.parametrize("step", [1e-4, 1e-30, 1e-60])
def test_a_step_that_no_code_holds_is_refused(mode: str, step: float) -> None:
    before, layer = [random(16, 9)], random(16, 9, seed=1)
    with pytest.raises(
        StepError, match=r"a step of .* is too fine for values of up to .*; the smallest step"
    ) as refused:
        quantize_layer(layer, KernelPool.of(before, 9), IlwpConfig.paper(mode=mode, residual_step=step))
    smallest = refused.value.smallest
    quantized = quantize_layer(layer, KernelPool.of(before, 9), IlwpConfig.paper(mode=mode, residual_step=smallest))
    assert quantized.bits == 15


def test_auto_leaves_out_what_no_code_holds() -> None:
    before, layer = [1e4 * random(16, 9)], random(16, 9, seed=1)
    quantized = quantize_layer(layer, KernelPool.of(before, 9), IlwpConfig.paper(mode="auto", residual_step=1e-3))
    assert bool((quantized.references == -1).all())
