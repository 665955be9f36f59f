"""Every layer in the file: the grid, merged batch norms, calibration, targets, codes of a toolkit."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import CompressedModel, IlwpConfig, compress, estimate, load, loads
from ilwp_plugin.errors import CalibrationError, ChainError, ConfigError, IlwpWarning, TensorError
from ilwp_plugin.models.tensors import integers_of
from ilwp_plugin.models.tensors import restored as restored_codes
from ilwp_plugin.pipeline.calibration import Calibrated, calibrate
from ilwp_plugin.testing import settle
from ilwp_plugin.zoo import build_model

WHOLE = IlwpConfig(weight_step=0.05, residual_step=0.03, anchor="quantized", batch_norm="merged", mode="auto")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Random weights, and batch norms that have seen inputs."""
    torch.manual_seed(0)
    network = build_model("mobilenet", width=0.25, stem_stride=2, in_channels=1)
    network.train()
    for _ in range(8):
        network(torch.randn(64, 1, 32, 32))
    return network.eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(96, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def rounding_alone_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IlwpWarning)
        yield


def restored(compressed: CompressedModel, model: nn.Module) -> nn.Module:
    network = copy.deepcopy(model)
    loads(compressed.to_bytes()).apply_to(network)
    return network.eval()


@torch.no_grad()
def error(compressed: CompressedModel, model: nn.Module, inputs: Tensor) -> float:
    expected = model(inputs)
    return float((restored(compressed, model)(inputs) - expected).square().mean() / expected.square().mean())


def test_every_byte_is_told(model: nn.Module, inputs: Tensor, tmp_path: Path) -> None:
    compressed = compress(model, WHOLE, calibration=inputs)
    ledger = compressed.save(tmp_path / "x.ilwp")
    assert (tmp_path / "x.ilwp").stat().st_size == ledger.file_bytes == load(tmp_path / "x.ilwp").ledger.file_bytes
    assert estimate(model, WHOLE, calibration=inputs).file_bytes == ledger.file_bytes
    assert ledger.grid_bytes and ledger.batch_norm_bytes and ledger.texture_bytes
    assert ledger.other_bytes < 1500, "names and shapes alone"
    again = load(tmp_path / "x.ilwp").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in compressed.state_dict().items())


def test_error_feedback_beats_rounding_at_the_same_step(model: nn.Module, inputs: Tensor) -> None:
    rounded, fed = compress(model, WHOLE), compress(model, WHOLE, calibration=inputs)
    fresh = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    assert error(fed, model, fresh) < 0.7 * error(rounded, model, fresh)
    assert fed.ledger.grid_bytes < 1.05 * rounded.ledger.grid_bytes


def test_measured_steps_cost_less_error_where_layers_differ(model: nn.Module, inputs: Tensor) -> None:
    config = WHOLE.replace(mode="none")
    equal = compress(model, config.replace(step_allocation="equal"), calibration=inputs)
    compressed = compress(model, config.replace(step_allocation="measured"), calibration=inputs)
    for steps, step in (
        ([layer.details["step"] for layer in compressed.layers if "bits" in layer.details], 0.03),
        ([float(value.scale) for name, value in compressed.quantized.items() if "weight" in name], 0.05),
    ):
        assert len(set(steps)) > 3 and step / 4 - 1e-6 < min(steps) < step < max(steps) < step * 4 + 1e-6
    fresh = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    assert error(compressed, model, fresh) < error(equal, model, fresh)
    assert compressed.ledger.file_bytes < 0.9 * equal.ledger.file_bytes
    with pytest.raises(ConfigError, match="step_allocation: 'measured' needs calibration inputs"):
        compress(model, config.replace(step_allocation="measured"))


def test_a_channel_that_has_nearly_died_is_not_amplified(model: nn.Module, inputs: Tensor) -> None:
    """Its batch norm would take the little that is left for what was there, and other inputs would explode."""
    fresh = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    for damping in (0.03, 10.0):
        config = WHOLE.replace(dead_zone=0.66, feedback_damping=damping)
        assert error(compress(model, config, calibration=inputs), model, fresh) < 0.01


def test_told_when_hardly_anything_is_left(model: nn.Module, inputs: Tensor) -> None:
    config = WHOLE.replace(weight_step=3.0, residual_step=3.0)
    telling = settle(copy.deepcopy(model), inputs)
    with pytest.warns(IlwpWarning, match="outputs on the calibration inputs change by .* of their variance"):
        compress(telling, config, calibration=inputs)


def test_one_pass_and_many_agree(model: nn.Module, inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    once = compress(model, WHOLE, calibration=inputs)
    passes = 0

    def limited(*arguments: object) -> Calibrated:
        nonlocal passes
        passes += 1
        return calibrate(*arguments, memory_bytes=4 << 20)  # type: ignore[arg-type]

    monkeypatch.setattr("ilwp_plugin.pipeline.quantize.calibrate", limited)
    many = compress(model, WHOLE, calibration=[inputs[:40], inputs[40:]])
    assert passes == 1
    assert abs(many.ledger.file_bytes / once.ledger.file_bytes - 1) < 0.02
    assert error(many, model, inputs) < 1.2 * error(once, model, inputs)


def test_mode_decision_is_no_larger_than_any_mode(model: nn.Module) -> None:
    modes = ("none", "collocated", "local", "full")
    sizes = [estimate(model, WHOLE.replace(mode=mode)).total_bytes for mode in modes]
    assert estimate(model, WHOLE).total_bytes <= min(sizes)


@pytest.mark.parametrize("batch_norm", ["exact", "merged"])
def test_batch_norms_follow(model: nn.Module, inputs: Tensor, batch_norm: str) -> None:
    config = WHOLE.replace(batch_norm=batch_norm, weight_step=0.2, dead_zone=0.6)
    coarse = restored(compress(model, config, calibration=inputs), model)
    outputs: list[Tensor] = []
    hook = coarse.get_submodule("features.3.1").register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad():
        coarse(inputs)
        hook.remove()
        hook = model.get_submodule("features.3.1").register_forward_hook(lambda *args: outputs.append(args[2]))
        model(inputs)
    hook.remove()
    quantized, original = (output.mean((0, 2, 3)) for output in outputs)
    assert float((quantized - original).abs().max()) < 0.1


def test_layers_may_be_left_out(model: nn.Module, inputs: Tensor) -> None:
    config = WHOLE.replace(ignored_scopes=("classifier", "{re}features\\.5\\..*"))
    state = compress(model, config, calibration=inputs).state_dict()
    own = model.state_dict()
    for name in ("classifier.weight", "features.5.0.weight", "features.5.3.weight"):
        assert torch.equal(state[name], own[name]), name
    with pytest.raises(ChainError, match="'klassifier' matches no convolution"):
        compress(model, WHOLE.replace(ignored_scopes=("klassifier",)))


@pytest.mark.slow
def test_targets(model: nn.Module, tmp_path: Path) -> None:
    state, config = model.state_dict(), WHOLE.replace(batch_norm_eps=1e-5)
    numel = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
    small = compress(state, config, target_bytes=60_000)
    assert 0.95 * 60_000 < small.ledger.file_bytes <= 60_000
    per_weight = compress(state, config, target_bits_per_weight=2.5, resume=tmp_path / "trials.jsonl")
    assert 0.95 * 2.5 < per_weight.ledger.file_bytes * 8 / numel <= 2.5
    scores: list[float] = []

    def score(network: nn.Module) -> float:
        scores.append(-float((network(torch.ones(1, 1, 32, 32)) - model(torch.ones(1, 1, 32, 32))).square().sum()))
        return scores[-1]

    found = compress(model, config, evaluate=score, max_drop=0.05)
    assert score(restored(found, model)) >= -0.05
    with pytest.raises(ConfigError, match="one target at a time"):
        compress(model, config, target_bytes=1, target_bits_per_weight=1.0)
    with pytest.raises(ConfigError, match="needs a module and `evaluate`"):
        compress(model, config, max_drop=1.0)
    with pytest.raises(CalibrationError, match="cannot be met"):
        compress(state, config, target_bytes=10)


def test_what_does_not_fit_is_refused(model: nn.Module, inputs: Tensor) -> None:
    state = model.state_dict()
    with pytest.raises(ConfigError, match="a state dict cannot be run"):
        compress(state, WHOLE.replace(batch_norm_eps=1e-5), calibration=inputs)
    with pytest.raises(ConfigError, match="does not tell the eps"):
        compress(state, WHOLE)
    with pytest.raises(ConfigError, match="dead_zone: 0.6 needs calibration"):
        compress(model, WHOLE.replace(dead_zone=0.6))
    with pytest.raises(CalibrationError, match="does not run on the calibration inputs"):
        compress(model, WHOLE, calibration=(inputs, torch.zeros(96)))
    with pytest.raises(CalibrationError, match="no inputs"):
        compress(model, WHOLE, calibration=[])


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(2)), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y - y.mean(0)


def test_examples_that_mix_are_noticed() -> None:
    torch.manual_seed(0)
    with pytest.raises(CalibrationError, match="mixes the examples of a batch"):
        compress(Mixing(), WHOLE.replace(batch_norm="exact", weight_step=0.3), calibration=torch.randn(8, 4, 6, 6))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
def test_calibration_reaches_convolutions_of_any_dimension(
    kind: type[nn.Module], recwarn: pytest.WarningsRecorder
) -> None:
    """At one step the outputs come out closer than without inputs, in the same bytes or so."""
    torch.manual_seed(0)
    depthwise = [kind(8, 8, 3, padding=1, groups=8) for _ in range(2)]
    network = nn.Sequential(kind(3, 8, 3), nn.ReLU(), *depthwise, nn.Flatten(), nn.LazyLinear(5)).eval()
    inputs = torch.randn(64, 3, 6, *([6, 6] if kind is nn.Conv3d else []))
    network(inputs)
    config = IlwpConfig(weight_step=0.1, residual_step=0.1, dead_zone=0.5, step_allocation="equal")
    plain, calibrated = compress(network, config), compress(network, config, calibration=inputs)
    assert error(calibrated, network, inputs) < 0.8 * error(plain, network, inputs)
    assert not [warning for warning in recwarn if "rounded alone" in str(warning.message)]


def test_layers_that_calibration_does_not_reach_are_named() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose1d(3, 4, 3), nn.Flatten(), nn.Linear(32, 5)).eval()
    inputs = torch.randn(9, 3, 6)
    with pytest.warns(IlwpWarning, match="'0': rounded alone"):
        compressed = compress(network, IlwpConfig(weight_step=0.02), calibration=inputs)
    assert error(compressed, network, inputs) < 0.01


def test_codes_of_a_toolkit_are_kept_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randint(-100, 101, (16, 1, 3, 3))
    codes = {
        "a": integers_of(base.to(torch.int8), torch.rand(16) / 64),
        "b": integers_of((base + torch.randint(-2, 3, base.shape)).to(torch.int8), torch.rand(16) / 64),
        "c": integers_of(torch.randint(-127, 128, (8, 16, 1, 1), dtype=torch.int8), torch.tensor(0.01)),
    }
    state = {f"{name}.weight": restored_codes(code) for name, code in codes.items()} | {"c.bias": torch.randn(8)}
    compressed = compress(state, "paper", quantized=codes)
    compressed.save(tmp_path / "x.ilwp")
    stored = load(tmp_path / "x.ilwp")
    assert all(torch.equal(tensor, state[name]) for name, tensor in stored.state_dict().items())
    assert np.array_equal(stored.quantized["b.weight"].codes, codes["b"].codes)
    layers = stored.ledger.layers
    assert layers["b.weight"].file_bytes < 0.75 * layers["a.weight"].file_bytes, "predicted by a"
    with pytest.raises(TensorError, match="is not \\(codes - zero_point\\) \\* scale"):
        compress({**state, "c.weight": state["c.weight"] + 1e-6}, "paper", quantized=codes)
    with pytest.raises(TensorError, match="no tensor 'd'"):
        compress(state, quantized={"d": codes["a"]})


def test_other_layers_only() -> None:
    """A network without any chain."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    config = IlwpConfig(weight_step=0.02, batch_norm="merged")
    inputs = torch.randn(50, 3, 6, 6)
    compressed = compress(network, config, calibration=inputs)
    assert not compressed.chains and error(compressed, network, inputs) < 0.01
    with pytest.raises(ChainError, match="no chain"):
        compress(network, "paper")


def test_whole_model_configuration(model: nn.Module, inputs: Tensor) -> None:
    config = IlwpConfig.whole_model(0.05, ignored_scopes=("classifier",))
    own = config.ilwp()
    assert own is not None and own.residual_step == pytest.approx(0.04)
    calibrated = compress(model, config, calibration=inputs)
    assert "classifier.weight" not in calibrated.quantized and error(calibrated, model, inputs) < 0.02
    steps = {value.scale.item() for name, value in calibrated.quantized.items() if "weight" in name}
    assert len(steps) > 3, "measured"
    found = compress(model, IlwpConfig.whole_model(), calibration=inputs, target_bytes=60_000)
    assert 55_000 < found.ledger.file_bytes <= 60_000
    rounded = compress(model, IlwpConfig.whole_model(0.05, calibrated=False))  # refuses nothing
    assert error(rounded, model, inputs) < 0.5
    with pytest.raises(ConfigError, match="unknown key 'weight_steps'"):
        IlwpConfig.whole_model(0.05, weight_steps=3)
