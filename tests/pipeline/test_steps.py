"""Finer steps and more bits: smaller errors in larger files, whatever sets the step."""

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ilwp_plugin import CompressedModel, IlwpConfig, compress, loads
from ilwp_plugin.errors import StepError
from ilwp_plugin.method.prediction import PREDICTORS
from ilwp_plugin.method.quantization import BITS, STEP_RULES

MODES = ["auto", *PREDICTORS]
STEPS = [0.4 / 3**i for i in range(6)]
PAPER = IlwpConfig(preset="paper")
SLACK = 1.02
"""Of a squared error: rounding is noise, so that a step that changes by a little may be lucky."""

pytestmark = pytest.mark.filterwarnings("ignore::ilwp_plugin.errors.IlwpWarning")


def weights(scales: Sequence[float] = (1.0, 4.0, 1.0, 0.3), seed: int = 0) -> dict[str, Tensor]:
    """Layers of other sizes than those that predict them, a dense layer between each two, and batch norms."""
    generator = torch.Generator().manual_seed(seed)
    state = {"stem.weight": torch.randn(24, 3, 3, 3, generator=generator)}
    for i, scale in enumerate(scales):
        state[f"{i}.weight"] = scale * torch.randn(24, 1, 3, 3, generator=generator)
        state[f"{i}.norm.weight"] = torch.randn(24, generator=generator).exp()
        state[f"{i}.norm.bias"] = torch.randn(24, generator=generator)
        state[f"{i}.norm.running_mean"] = torch.randn(24, generator=generator)
        state[f"{i}.norm.running_var"] = torch.randn(24, generator=generator).exp()
        state[f"{i}.dense.weight"] = scale * torch.randn(24, 24, 1, 1, generator=generator) / 5
    return state


def depthwise(state: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in state.items() if tensor.shape[1:] == (1, 3, 3)]


def error(state: dict[str, Tensor], compressed: CompressedModel, names: Sequence[str]) -> float:
    """Squared error of some tensors, as they are read from the file."""
    restored = loads(compressed.to_bytes()).state_dict()
    return sum(float((state[name].double() - restored[name].double()).square().sum()) for name in names)


def check_order(errors: Sequence[float], sizes: Sequence[int]) -> None:
    """From coarse to fine."""
    assert all(fine <= SLACK * coarse for coarse, fine in itertools.pairwise(errors)), errors
    assert list(sizes) == sorted(sizes), sizes


@pytest.mark.parametrize("rate_weight", [0.0, 0.1])
@pytest.mark.parametrize("mode", MODES)
def test_residual_step(mode: str, rate_weight: float) -> None:
    state = weights()
    names = depthwise(state)[1:]
    config = PAPER.replace(mode=mode, rate_weight=rate_weight)
    files = [compress(state, config.replace(residual_step=step)) for step in STEPS]
    errors = [error(state, file, names) for file in files]
    check_order(errors, [len(file.to_bytes()) for file in files])
    assert all(3 < coarse / fine < 30 for coarse, fine in itertools.pairwise(errors)), "as the square of the step"


@pytest.mark.parametrize("rule", list(STEP_RULES))
@pytest.mark.parametrize("mode", MODES)
def test_bits(mode: str, rule: str) -> None:
    state = weights()
    names = depthwise(state)[1:]
    for name in names:
        files = [compress(state, PAPER.replace(mode=mode, bits=bits, range=rule)) for bits in BITS]
        check_order([error(state, file, [name]) for file in files], [len(file.to_bytes()) for file in files])


@pytest.mark.parametrize("anchor", ["quantized", "fp16", "fp32"])
def test_whole_model_without_calibration(anchor: str) -> None:
    state = weights()
    configs = [IlwpConfig.whole_model(step, calibrated=False, batch_norm_eps=1e-5, anchor=anchor) for step in STEPS]
    files = [compress(state, config) for config in configs]
    sizes = [len(file.to_bytes()) for file in files]
    for names in (depthwise(state)[anchor != "quantized" :], [name for name in state if "dense" in name]):
        check_order([error(state, file, names) for file in files], sizes)


def test_weight_bits() -> None:
    state = weights()
    names = [name for name in state if "dense" in name]
    config = PAPER.replace(weight_step=1e-3)
    for name in names:
        files = [compress(state, config.replace(weight_bits=bits)) for bits in (2, 3, 4, 6, 8, 10, 16)]
        check_order([error(state, file, [name]) for file in files], [len(file.to_bytes()) for file in files])


def test_batch_norm_bits() -> None:
    state = weights()
    config = PAPER.replace(batch_norm="merged", batch_norm_eps=1e-5)
    plain = {f"{i}": norm(state, f"{i}.norm") for i in range(4)}
    files = [compress(state, config.replace(batch_norm_bits=bits)) for bits in range(1, 13)]
    errors = []
    for file in files:
        restored = loads(file.to_bytes()).state_dict()
        errors.append(sum(float((norm(restored, f"{i}.norm") - plain[i]).square().sum()) for i in plain))
    check_order(errors, [len(file.to_bytes()) for file in files])


def norm(state: dict[str, Tensor], name: str) -> Tensor:
    """Scale and shift."""
    scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
    return torch.cat([scale, state[f"{name}.bias"] - scale * state[f"{name}.running_mean"]])


@pytest.mark.parametrize("mode", MODES)
def test_bits_per_weight(mode: str) -> None:
    state = weights()
    targets = (4.0, 6.0, 8.0, 10.0)
    config = IlwpConfig(mode=mode, anchor="quantized", batch_norm="merged", batch_norm_eps=1e-5)
    files = [compress(state, config, target_bits_per_weight=target) for target in targets]
    sizes = [len(file.to_bytes()) for file in files]
    for names in (depthwise(state), [name for name in state if "dense" in name]):
        check_order([error(state, file, names) for file in files], sizes)


class Calibrated(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        for i in range(3):
            self.append(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False))
            self.append(nn.BatchNorm2d(8))
            self.append(nn.ReLU())
            self.append(nn.Conv2d(8, 8, 1))
            nn.init.normal_(self[4 * i].weight, std=(0.3, 1.0, 0.3)[i])
        self.train()
        for _ in range(20):  # running statistics that are those of the inputs
            self(torch.randn(256, 8, 8, 8))
        self.eval()


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"mode": "auto"}, [{"residual_step": step} for step in STEPS]),
        ({"mode": "collocated"}, [{"residual_step": step} for step in STEPS]),
        ({"mode": "auto", "anchor": "quantized"}, [{"bits": bits} for bits in BITS]),
        ({"mode": "collocated"}, [{"bits": bits} for bits in BITS]),
        ({"mode": "auto", "dead_zone": 0.6}, [{"weight_step": step, "residual_step": step} for step in STEPS]),
        ({"weight_step": 1e-3, "biases": False}, [{"weight_bits": bits} for bits in (2, 3, 4, 6, 8, 12)]),
        (
            {"batch_norm": "merged", "batch_norm_bits": 10, "step_allocation": "measured"},
            [{"weight_step": step} for step in STEPS],
        ),
    ],
    ids=str,
)
def test_outputs_with_calibration(changes: dict[str, Any], values: list[dict[str, Any]]) -> None:
    """Of the outputs on fresh inputs; error feedback does not round each weight to the nearest."""
    model = Calibrated()
    inputs = torch.randn(64, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    fresh = torch.randn(64, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    errors, sizes = [], []
    for value in values:
        compressed = compress(model, PAPER.replace(**changes, **value), calibration=inputs)
        sizes.append(len(compressed.to_bytes()))
        restored = copy.deepcopy(model)
        compressed.apply_to(restored)
        with torch.no_grad():
            errors.append(float((restored(fresh) - model(fresh)).double().square().sum()))
    floor = 1e-3 * errors[0]  # what is left of so little is due to other things that are rounded
    check_order([max(value, floor) for value in errors], sizes)


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=5),
    st.sampled_from(MODES),
    st.floats(-6, 0),
    st.floats(0.3, 2),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_any_scales_of_layers(exponents: list[float], mode: str, exponent: float, finer: float, seed: int) -> None:
    state = weights([10**value for value in exponents], seed)
    names = depthwise(state)[1:]
    largest = max(float(state[name].abs().max()) for name in depthwise(state))
    steps = [largest * 10**exponent, largest * 10 ** (exponent - finer)]
    try:
        files = [compress(state, PAPER.replace(mode=mode, residual_step=step)) for step in steps]
    except StepError as refused:
        assert "layer '" in str(refused) and refused.smallest > steps[1]
        return
    errors = [error(state, file, names) for file in files]
    assert errors[1] <= errors[0] * 1.2
    for file, step in zip(files, steps, strict=True):
        restored = file.state_dict()
        for name in names:
            bound = step / 2 * (1 + 1e-3) + 1e-6 * largest
            assert float((restored[name] - state[name]).abs().max()) <= bound


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (PAPER.replace(residual_step=2e-4), "layer '1'"),
        (PAPER.replace(weight_step=2e-4), "tensor '2.dense.weight'"),
    ],
)
def test_a_step_too_fine_is_refused_by_name(config: IlwpConfig, name: str) -> None:
    state = weights()
    state["0.dense.bias"] = torch.full((24,), 100.0)
    state["2.dense.weight"] *= 100
    with pytest.raises(StepError, match=f"{name}.* is too fine for values of up to .* the smallest step that does is"):
        compress(state, config)


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("bits", BITS)
def test_auto_is_as_good_as_no_prediction(scale: float, bits: int) -> None:
    """Also where a layer is predicted by a larger one, so that its residuals are larger than itself."""
    state = weights((1.0, scale, 1.0, 1.0))
    names = depthwise(state)[2:]
    plain, best = (error(state, compress(state, PAPER.replace(mode=m, bits=bits)), names) for m in ("none", "auto"))
    assert best <= 1.1 * plain


def test_a_search_stops_at_the_finest_step(tmp_path: Path) -> None:
    """A target that everything meets: then the finest step that a file holds."""
    state = weights()
    finest = compress(state, target_bytes=1 << 20, resume=tmp_path / "trials.jsonl")
    assert max(int(layer.details["bits"]) for layer in finest.layers if "bits" in layer.details) == 15
    assert float(finest.quantized["0.dense.weight"].scale) < 1e-3


def test_every_weight_that_a_step_is_too_fine_for_is_named() -> None:
    """And the step that suits all."""
    state = {f"{name}.weight": torch.full((4, 8), largest) for name, largest in (("a", 1.0), ("b", 0.001), ("c", 3.0))}
    config = IlwpConfig.whole_model(1e-5)
    with pytest.raises(StepError, match=r"^tensor 'c.weight': .*; too fine for 1 more, too: 'a.weight'$") as caught:
        compress(state, config)
    assert compress(state, IlwpConfig.whole_model(caught.value.smallest))
