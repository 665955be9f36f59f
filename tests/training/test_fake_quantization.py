import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.errors import ChainError, ConfigError, TensorError, TrainingError
from ilwp_plugin.recipes.ilwp import ClosedLoop
from ilwp_plugin.training import FakeQuantizer, InterLayerLoss, ResidualFakeQuantizer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.weight": module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    }


def step(model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(images), torch.arange(len(images))).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@pytest.mark.parametrize("rule", ["max", "percentile", "mse"])
@pytest.mark.parametrize("mode", ["none", "collocated", "local", "full"])
def test_layers_compute_with_what_the_file_restores(mobilenet: nn.Module, mode: str, rule: str) -> None:
    config = IlwpConfig.paper(mode=mode, bits=4, range=rule)
    expected = compress(mobilenet, config).state_dict()
    quantizer = FakeQuantizer(mobilenet, config)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(mobilenet).items())
    quantizer.remove(bake=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in mobilenet.state_dict().items())


OTHERS: list[dict[str, Any]] = [
    {"residual_step": 0.02},
    {"residual_step": 0.02, "rate_weight": 0.2, "anchor": "quantized"},
    {"bits": 4, "rate_weight": 0.1, "range": "mse"},
    {"bits": 4, "mode": "auto"},
    {"mode": "auto", "residual_step": 0.02, "rate_weight": 0.1, "anchor": "fp16"},
    {"bits": 5, "overrides": {"features.3": {"bits": 3, "mode": "none"}}},
]


@pytest.mark.parametrize("fields", OTHERS, ids=str)
def test_every_configuration_trains_as_it_is_stored(mobilenet: nn.Module, fields: dict[str, Any]) -> None:
    check_every_weight(mobilenet, IlwpConfig.paper(**fields))


WHOLE: list[dict[str, Any]] = [
    {},
    {"bits": 4},
    {"weight_step": 0.03},
    {"weight_step": 0.03, "ignored_scopes": ["classifier", "features.3"]},
    {"recipes": [{"name": "grid", "target_scopes": ["{re}features.*"]}]},
    {"recipes": [{"name": "grid", "ignored_scopes": ["features.4"]}, {"name": "ilwp", "bits": 3}]},
]


@pytest.mark.parametrize("fields", WHOLE, ids=str)
def test_every_layer_trains_as_it_is_stored(mobilenet: nn.Module, fields: dict[str, Any]) -> None:
    check_every_weight(mobilenet, IlwpConfig.from_dict(fields))


def check_every_weight(model: nn.Module, config: IlwpConfig) -> None:
    expected = compress(model, config).state_dict()
    before = copy.deepcopy(model.state_dict())
    quantizer = FakeQuantizer(model, config)
    changed = {key for key, tensor in before.items() if tensor.dim() > 1 and not torch.equal(tensor, expected[key])}
    assert changed <= set(quantizer.parts.keys) and len(changed) >= 12
    for key, weight in quantizer.parts.reconstructed().items():
        assert torch.equal(weight.reshape(expected[key].shape), expected[key]), key
    for name in quantizer.names:
        assert torch.equal(model.get_submodule(name).weight, expected[f"{name}.weight"]), name
    quantizer.remove()
    file = quantizer.compressed().state_dict()
    assert all(torch.equal(file[key], expected[key]) for key in quantizer.parts.keys)


def test_raw_weights_come_back(mobilenet: nn.Module) -> None:
    before = copy.deepcopy(mobilenet.state_dict())
    quantizer = FakeQuantizer(mobilenet, IlwpConfig.paper(bits=3))
    assert set(mobilenet.state_dict()) != set(before)
    quantizer.remove()
    after = mobilenet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_training_moves_raw_weights_through_the_quantizer(mobilenet: nn.Module, images: Tensor) -> None:
    before = weights(mobilenet)
    config = IlwpConfig.paper(bits=4)
    quantizer = FakeQuantizer(mobilenet, config)
    optimizer = torch.optim.SGD(mobilenet.parameters(), 0.1)
    for _ in range(3):
        step(mobilenet, images, optimizer)
    mobilenet.eval()
    seen = mobilenet(images).detach()
    quantizer.remove()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in list(weights(mobilenet).items())[:12])
    compress(mobilenet, config).apply_to(mobilenet)
    assert torch.equal(mobilenet(images), seen)


def test_gradient_is_that_of_the_reconstructed_model(mobilenet: nn.Module, images: Tensor) -> None:
    twin = copy.deepcopy(mobilenet)
    config = IlwpConfig.paper(bits=4)
    compress(twin, config).apply_to(twin)
    FakeQuantizer(mobilenet, config)
    for model in (mobilenet, twin):
        F.cross_entropy(model(images), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    ours = {n.replace("parametrizations.weight.original", "weight"): p.grad for n, p in mobilenet.named_parameters()}
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad)


def test_can_be_switched_off_and_on(mobilenet: nn.Module, images: Tensor) -> None:
    mobilenet.eval()
    raw = mobilenet(images).detach()
    quantizer = FakeQuantizer(mobilenet, IlwpConfig.paper(bits=2))
    assert not torch.equal(mobilenet(images), raw) and quantizer.enabled
    quantizer.enabled = False
    assert torch.equal(mobilenet(images), raw) and not quantizer.enabled


def test_changes_behind_the_version_counter_are_noticed(mobilenet: nn.Module, images: Tensor) -> None:
    mobilenet.eval()
    FakeQuantizer(mobilenet, IlwpConfig.paper(bits=4))
    before = mobilenet(images).detach()
    for name, parameter in mobilenet.named_parameters():
        if "original" in name:
            parameter.data.mul_(2)
    assert not torch.allclose(mobilenet(images), before)


def test_chain_is_reconstructed_once_a_forward(
    mobilenet: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = ClosedLoop.restored
    monkeypatch.setattr(ClosedLoop, "restored", lambda *args: calls.append(1) or original(*args))
    FakeQuantizer(mobilenet, IlwpConfig.paper(bits=4))
    calls.clear()
    mobilenet(images)
    assert len(calls) == 13, "layers"


def test_deepcopy_is_independent(mobilenet: nn.Module, images: Tensor) -> None:
    mobilenet.eval()
    FakeQuantizer(mobilenet, IlwpConfig.paper(bits=4))
    twin = copy.deepcopy(mobilenet)
    before = mobilenet(images).detach()
    for parameter in twin.parameters():
        parameter.data.mul_(1.5)
    assert not torch.allclose(twin(images), before)
    assert torch.equal(mobilenet(images), before)


def test_the_loss_is_that_of_the_raw_weights(mobilenet: nn.Module) -> None:
    plain = InterLayerLoss(mobilenet, IlwpConfig.paper(loss_weight=1.0)).value()
    FakeQuantizer(mobilenet, IlwpConfig.paper(bits=2))
    loss = InterLayerLoss(mobilenet, IlwpConfig.paper(loss_weight=1.0))
    assert torch.equal(loss(), plain)
    loss().backward()
    originals = [p for n, p in mobilenet.named_parameters() if "original" in n]
    assert len(originals) == 13 and all(p.grad is not None and bool(p.grad.any()) for p in originals)


def test_checkpoints_resume(mobilenet: nn.Module, images: Tensor) -> None:
    quantizer = FakeQuantizer(mobilenet, IlwpConfig.paper(bits=4))
    optimizer = torch.optim.SGD(mobilenet.parameters(), 0.1)
    step(mobilenet, images, optimizer)
    state = copy.deepcopy(mobilenet.state_dict())
    step(mobilenet, images, optimizer)
    after = copy.deepcopy(mobilenet.state_dict())
    mobilenet.load_state_dict(state)
    step(mobilenet, images, torch.optim.SGD(mobilenet.parameters(), 0.1))
    assert all(torch.equal(t, after[n]) for n, t in mobilenet.state_dict().items())
    quantizer.remove()


def test_order_of_a_state_dict_survives() -> None:
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, groups=4) for _ in range(3)))
    before = list(model.state_dict())
    FakeQuantizer(model).remove()
    assert list(model.state_dict()) == before


def test_index_maps(mobilenet: nn.Module, images: Tensor) -> None:
    name = InterLayerLoss(mobilenet, IlwpConfig.paper(loss_weight=1.0)).chains.chains[0].layers[1]
    given = {name: torch.arange(16).flip(0) % 8}
    expected = compress(mobilenet, "paper", references=given).state_dict()
    quantizer = FakeQuantizer(mobilenet, "paper", references=given)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in weights(mobilenet).items())
    quantizer.remove()
    with pytest.raises(ChainError, match="is no predicted layer"):
        FakeQuantizer(mobilenet, "paper", references={"x": torch.zeros(1)})


def test_inference_mode_then_training(mobilenet: nn.Module, images: Tensor) -> None:
    FakeQuantizer(mobilenet, IlwpConfig.paper(bits=4))
    with torch.inference_mode():
        mobilenet(images)
    block = mobilenet.features[3]  # type: ignore[index]
    block(torch.randn(1, 8, 4, 4)).sum().backward()  # type: ignore[operator]


def test_tied_weights_are_refused() -> None:
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, groups=4) for _ in range(3)))
    model[2].weight = model[0].weight
    with pytest.raises(TrainingError, match="layer '0': its weight is shared with another layer"):
        FakeQuantizer(model)


def test_misuse(mobilenet: nn.Module) -> None:
    for fields in (IlwpConfig.paper(bits=None), IlwpConfig.lossless()):
        with pytest.raises(ConfigError, match="quantizes no layer that trains; set `bits` to 2..8"):
            FakeQuantizer(mobilenet, fields)
    for config in (IlwpConfig.paper(), IlwpConfig.paper(bits=None)):
        with pytest.raises(ChainError, match="no chain"):
            FakeQuantizer(nn.Linear(2, 2), config)
    quantizer = FakeQuantizer(mobilenet)
    assert ResidualFakeQuantizer is FakeQuantizer, "its earlier name"
    with pytest.raises(TensorError, match=r"a FakeQuantizer is on the model: quantizer.remove\(\) takes it off"):
        FakeQuantizer(mobilenet)
    with pytest.raises(TrainingError, match="the quantizer is still on"):
        quantizer.compressed()
