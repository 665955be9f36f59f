"""Weights on a grid: the limit of codes that hardware sets."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import CompressedModel, IlwpConfig, compress
from ilwp_plugin.models.tensors import integers_of, restored
from ilwp_plugin.training import FakeQuantizer

FINE = IlwpConfig(bits=None, weight_step=1e-3, dead_zone=0.5)


@pytest.fixture
def model(mobilenet: nn.Module) -> nn.Module:
    with torch.no_grad():
        mobilenet.classifier.weight[0, 0] = 3.0  # 3,000 steps
    return mobilenet.eval()


def largest_codes(compressed: CompressedModel) -> dict[str, int]:
    return {n: int(np.abs(v.centred).max()) for n, v in compressed.quantized.items() if n.endswith("weight")}


@pytest.mark.filterwarnings("ignore::ilwp_plugin.errors.IlwpWarning")
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("calibrated", [False, True])
def test_no_code_takes_more_bits(model: nn.Module, images: Tensor, bits: int, calibrated: bool) -> None:
    free = compress(model, FINE)
    assert largest_codes(free)["classifier.weight"] == 3000
    calibration = images.repeat(16, 1, 1, 1) if calibrated else None
    held = compress(model, FINE.replace(weight_bits=bits, step_allocation="equal"), calibration=calibration)
    limit = 2 ** (bits - 1) - 1
    assert max(largest_codes(held).values()) == largest_codes(held)["classifier.weight"] == limit
    if not calibrated:
        state = model.state_dict()
        for name, value in held.quantized.items():
            if name.endswith("weight"):
                error = (torch.from_numpy(value.restore()) - state[name]).abs().max()
                assert float(error) <= float(value.scale) * 0.5001, name


def test_what_needs_no_limit_is_as_without_one(model: nn.Module) -> None:
    coarse = FINE.replace(weight_step=0.05)
    free, held = compress(model, coarse), compress(model, coarse.replace(weight_bits=8))
    assert {n: c for n, c in largest_codes(free).items() if c > 127} == {}
    assert held.to_bytes() == free.to_bytes()


def test_training_is_held_to_it(model: nn.Module, images: Tensor) -> None:
    quantizer = FakeQuantizer(model, FINE.replace(weight_bits=4))
    with torch.no_grad():  # what grows in training is cut
        model.classifier.parametrizations.weight.original.mul_(2)
        model.features[6][0].parametrizations.weight.original.mul_(3)
    seen = {n: m.weight.detach().clone() for n, m in model.named_modules() if hasattr(m, "parametrizations")}
    quantizer.remove()
    compressed = quantizer.compressed()
    assert set(largest_codes(compressed).values()) == {7}
    stored = compressed.state_dict()
    assert all(torch.equal(stored[f"{name}.weight"], weight) for name, weight in seen.items())


def test_biases_of_layers_whose_weights_a_toolkit_has_quantized_keep_a_fine_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    codes = {}
    for name in ("0", "2"):
        layer = model.get_submodule(name)
        scale = layer.weight.detach().abs().amax() / 127
        value = integers_of(torch.round(layer.weight.detach() / scale).to(torch.int16), scale)
        layer.weight.data = restored(value)
        codes[f"{name}.weight"] = value
    after = compress(model, quantized=codes).state_dict()
    for name in ("0.bias", "2.bias"):
        before = model.get_parameter(name).detach()
        assert float((after[name] - before).abs().max()) < 0.01 * float(before.abs().max())
