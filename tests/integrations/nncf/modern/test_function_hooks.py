"""The style of NNCF 3: calls on a model, and NNCF's own saving of hooks."""

import copy
from pathlib import Path
from typing import Any

import nncf
import pytest
import torch
from ilwp_integrations.nncf import apply_ilwp, controller_of, load_from_config
from nncf.parameters import PruneMode
from nncf.torch.function_hook.wrapper import get_hook_storage
from torch import nn

from ilwp_plugin import load
from ilwp_plugin.errors import CalibrationError, TrainingError
from tests.integrations.nncf.helpers import images, network, optimizer_of, train

CONFIG = {"preset": "paper", "bits": 4, "loss_weight": 3.0}


def pruned(model: nn.Module) -> nn.Module:
    return nncf.prune(model, PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, ratio=0.4, examples_inputs=(images(),))


def quantized(model: nn.Module) -> nn.Module:
    return nncf.quantize(model.eval(), nncf.Dataset([images()]), subset_size=1)


def test_behind_pruning_and_quantization(tmp_path: Path) -> None:
    model = apply_ilwp(quantized(pruned(network())), CONFIG, images())
    controller = controller_of(model, images())
    train(controller, model, optimizer_of(model))
    stripped = controller.strip().eval()
    out = stripped(images()).detach()
    controller.save_ilwp(tmp_path / "model.ilwp")
    load(tmp_path / "model.ilwp").apply_to(stripped)
    torch.testing.assert_close(stripped(images()), out, rtol=0, atol=0)


def test_inputs_choose_the_steps() -> None:
    config = {"weight_step": 0.05, "loss_weight": 0.0}
    found = {}
    for name, model, inputs in (
        ("equal", network(), None),
        ("alone", network(), images()),
        ("int8", quantized(network()), images()),
    ):
        controller = controller_of(apply_ilwp(model, config, images(2), calibration=inputs), images(2))
        assert controller.session is not None
        found[name] = controller.session.parts.state_dict()["steps"]
    assert sorted(set(found["equal"].values())) == pytest.approx([0.04, 0.05])
    assert len(set(found["alone"].values())) > 10 < len(set(found["int8"].values()))
    largest = {key: float(network().get_parameter(key).detach().abs().max()) for key in found["int8"]}
    grid = [key for key, step in found["equal"].items() if step == pytest.approx(0.05)]
    assert all(largest[key] / found["int8"][key] < 63.01 for key in grid)
    with pytest.raises(CalibrationError, match="does not run"):
        apply_ilwp(network(), config, images(2), calibration=images(4, channels=3))


@pytest.mark.parametrize("load_hooks", ["ours", "nncf"])
def test_hooks_survive_nncf_s_config(load_hooks: str) -> None:
    model = apply_ilwp(pruned(network()), CONFIG, images())
    controller = controller_of(model, images())
    train(controller, model, optimizer_of(model))
    config, state = nncf.torch.get_config(model), model.state_dict()
    if load_hooks == "ours":
        again = load_from_config(network(), config)
    else:
        again = nncf.torch.load_from_config(network(), config, allowed_modules=("nncf.*", "ilwp_integrations.*"))
    again.load_state_dict(state)
    torch.testing.assert_close(again.eval()(images()), model(images()), rtol=0, atol=0)
    restored = controller_of(again, images())
    torch.testing.assert_close(restored.strip().eval()(images()), model(images()), rtol=0, atol=0)
    assert restored.estimate_ilwp() == controller.estimate_ilwp()


def test_two_models_restored_at_once_do_not_share_a_loop() -> None:
    config = nncf.torch.get_config(apply_ilwp(network(), CONFIG, images()))
    first, second = (load_from_config(network(), config) for _ in range(2))
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(0.5)
    before = first.eval()(images())
    second.eval()(images())
    torch.testing.assert_close(first(images()), before, rtol=0, atol=0)


@pytest.mark.parametrize("later", [pruned, quantized])
def test_what_comes_behind_ilwp_is_refused(later: Any) -> None:
    model = later(apply_ilwp(network(), CONFIG, images()))
    controller = controller_of(model, images())
    with pytest.raises(TrainingError, match="before ilwp"):
        controller.strip()


def test_twice_is_refused() -> None:
    model = apply_ilwp(network(), CONFIG, images())
    with pytest.raises(TrainingError, match="already"):
        apply_ilwp(model, CONFIG, images())
    with pytest.raises(TrainingError, match="apply_ilwp first"):
        controller_of(network(), images())


def test_a_copy_is_independent() -> None:
    model = apply_ilwp(network(), CONFIG, images()).eval()
    twin = copy.deepcopy(model)
    before = model(images())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    changed = twin(images())
    torch.testing.assert_close(model(images()), before, rtol=0, atol=0)
    assert not torch.equal(changed, before)
    assert not get_hook_storage(model).is_empty()


def test_export_to_openvino(tmp_path: Path) -> None:
    import openvino

    model = apply_ilwp(network(), CONFIG, images())
    controller_of(model, images()).export_model(tmp_path / "model.xml")
    compiled = openvino.compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (out,) = compiled(images().numpy()).values()
    torch.testing.assert_close(torch.from_numpy(out), model.eval()(images()).detach(), rtol=1e-3, atol=1e-3)
