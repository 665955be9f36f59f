"""What has to be said of a layer that comes out badly: whatever the file holds, nobody finds out by chance."""

import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import CompressedModel, IlwpConfig, compress
from ilwp_plugin.errors import IlwpWarning
from ilwp_plugin.method.quantization import BITS
from ilwp_plugin.recipes.base import AUTO

PAPER = IlwpConfig(preset="paper")


def ordinary(layers: int = 5, similar: float = 0.0) -> dict[str, Tensor]:
    """Layers that resemble each other more or less; 0: not at all."""
    generator = torch.Generator().manual_seed(0)
    state = {"0.weight": torch.randn(32, 1, 3, 3, generator=generator)}
    for n in range(1, layers):
        fresh = torch.randn(32, 1, 3, 3, generator=generator)
        state[f"{n}.weight"] = similar * state[f"{n - 1}.weight"] + (1 - similar**2) ** 0.5 * fresh
    return state


def told(state: dict[str, Tensor], config: IlwpConfig) -> tuple[CompressedModel, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", IlwpWarning)
        compressed = compress(state, config)
    return compressed, [str(warning.message) for warning in caught]


def powers(state: dict[str, Tensor], compressed: CompressedModel, layer: str) -> tuple[float, float]:
    """Of a layer's weights, and of their errors."""
    weight, restored = state[f"{layer}.weight"], compressed.state_dict()[f"{layer}.weight"]
    return float(weight.square().sum()), float((weight - restored).square().sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_prediction_that_loses_is_said(bits: int) -> None:
    state = ordinary()
    compressed, messages = told(state, PAPER.replace(bits=bits))
    plain, _ = told(state, PAPER.replace(bits=bits, mode="none"))
    for layer in ("1", "2", "3", "4"):
        power, error = powers(state, compressed, layer)
        assert error > powers(state, plain, layer)[1]
        expected = "worse than zeros would" if error > power else "worse than without prediction at the same bits"
        assert compressed.notes[layer] == f"comes out {expected}"
    assert len(messages) == len(set(compressed.notes.values())), "one for each kind"
    assert all("mode 'auto', `align`, or training with the inter-layer loss" in message for message in messages)
    if len(messages) == 1:
        assert messages[0].startswith("'1', '2', '3' and 1 more: comes out worse than")


@pytest.mark.parametrize(("mode", "bits"), itertools.product([AUTO, "none"], BITS))
def test_what_does_not_lose_is_not_said(mode: str, bits: int) -> None:
    state = ordinary()
    compressed, messages = told(state, PAPER.replace(mode=mode, bits=bits))
    assert not messages and not compressed.notes
    for layer in ("1", "2", "3", "4"):
        power, error = powers(state, compressed, layer)
        assert error < power


def test_similar_layers_gain_by_prediction() -> None:
    compressed, messages = told(ordinary(similar=0.98), PAPER.replace(bits=4))
    assert not messages and not compressed.notes
    assert all(layer.details["mode"] == "collocated" for layer in compressed.layers[1:])


def test_given_references_that_lose_are_said() -> None:
    state = ordinary()
    state["1.weight"] = -state["0.weight"]
    with pytest.warns(IlwpWarning, match="'1': comes out worse than without prediction"):
        compress(state, PAPER.replace(mode=AUTO, bits=6), references={"1": torch.arange(32)})


def test_a_step_so_large_that_a_layer_becomes_zero_is_said() -> None:
    state = ordinary(3)
    state["1.weight"] *= 0.01
    state |= {"dense.weight": 0.001 * torch.randn(8, 9), "dense.bias": 1e-6 * torch.randn(8)}
    state |= {"zero.weight": torch.zeros(8, 9), "good.weight": torch.randn(8, 9), "good.bias": 1e-6 * torch.randn(8)}
    config = IlwpConfig(weight_step=0.2, residual_step=0.2)
    compressed, messages = told(state, config)
    assert compressed.notes == dict.fromkeys(["1", "dense"], "becomes 0 as a whole")
    assert [m for m in messages if "'1', 'dense': becomes 0 as a whole; smaller steps" in m]
    finer, messages = told(state, config.replace(weight_step=1e-3, residual_step=1e-3))
    assert not finer.notes and not messages


def test_a_half_anchor_that_underflows_is_said() -> None:
    state = {name: 1e-9 * tensor for name, tensor in ordinary(3).items()}
    compressed, _ = told(state, PAPER.replace(anchor="fp16"))
    assert compressed.notes["0"] == "becomes 0 as a whole"


def test_calibrated_layers_too() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *layers).eval()
    with pytest.warns(IlwpWarning, match="'2', '3': comes out worse than"):
        compress(model, PAPER.replace(bits=3), calibration=torch.randn(32, 3, 8, 8))
