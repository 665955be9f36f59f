"""Files of int8 models: what they restore, with NNCF and without, in a new process and with no data."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from ilwp_integrations.nncf import restore
from torch import nn
from torch.ao.quantization import FakeQuantize

from ilwp_plugin import load, toolkits
from ilwp_plugin.errors import FormatError, IlwpWarning, TensorError
from tests.integrations.nncf.helpers import (
    FILTERS,
    ILWP,
    INT8,
    MAGNITUDE,
    WHOLE,
    check_in_a_new_process,
    compressed,
    images,
    network,
    optimizer_of,
    train,
)

LEGACY = version("nncf").startswith("2.")
STEP = {**WHOLE, "weight_step": 0.03, "step_allocation": "equal", "mode": "collocated"}
STACKS: dict[str, list[Any]] = {
    "int8": [INT8],
    "asymmetric": [{**INT8, "weights": {"mode": "asymmetric", "per_channel": True}}],
    "chains": [INT8, ILWP],
    "whole": [MAGNITUDE, INT8, WHOLE],
    "step": [INT8, STEP],
    **({"filters": [FILTERS, INT8]} if LEGACY else {}),
}


def quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantize)}


@pytest.fixture(scope="module", params=STACKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    controller, model = compressed(STACKS[request.param])
    train(controller, model, optimizer_of(model), [0, 1], steps=1)
    path = tmp_path_factory.mktemp(request.param) / "model.ilwp"
    controller.save_ilwp(path, **({"preset": "lossless"} if request.param in ("int8", "asymmetric", "filters") else {}))
    return path, controller.strip().eval()


def test_the_int8_model_is_restored(trained: tuple[Path, nn.Module]) -> None:
    path, stripped = trained
    outputs = stripped(images()).detach()
    restored = restore(path, network())
    torch.testing.assert_close(restored(images()), outputs, rtol=1e-6, atol=1e-6)
    assert len(quantizers(restored)) == len(quantizers(stripped)) > 20
    for parameter in stripped.parameters():
        nn.init.zeros_(parameter)
    for quantizer in quantizers(stripped).values():
        quantizer.scale.mul_(0.5)
    load(path).apply_to(stripped)
    torch.testing.assert_close(stripped(images()), outputs, rtol=0, atol=0)


def test_the_file_itself_restores_the_quantized_model(trained: tuple[Path, nn.Module]) -> None:
    path, stripped = trained
    again = load(path).restore(network())
    assert quantizers(again)
    torch.testing.assert_close(again(images()), stripped(images()), rtol=0, atol=1e-6)


def test_without_nncf_the_weights_are_floats(trained: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    path, stripped = trained
    file = load(path)
    assert list(file.state_dict()) == list(network().state_dict())
    monkeypatch.setattr(toolkits, "_announced", lambda *_: {})
    with pytest.warns(IlwpWarning, match=r"nncf has quantized.*activations are not: unknown integration 'nncf'"):
        plain = file.restore(network())
    assert type(plain) is type(network()) and not quantizers(plain)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, stripped.state_dict()[name], rtol=0, atol=0, msg=name)


def test_in_a_new_process(tmp_path: Path) -> None:
    controller, model = compressed([INT8, STEP])
    train(controller, model, optimizer_of(model), [0], steps=1)
    controller.save_ilwp(tmp_path / "model.ilwp")
    check_in_a_new_process(tmp_path / "model.ilwp", controller.strip().eval()(images()).detach(), 1e-6)


@pytest.mark.slow
def test_layers_run_in_int8_with_the_same_codes() -> None:
    controller, model = compressed([INT8, STEP])
    train(controller, model, optimizer_of(model), [0], steps=1)
    file_weights = {}
    stripped = controller.strip().eval()
    state = stripped.state_dict()
    for key, tensor in state.items():
        if key in network().state_dict() and tensor.dim() > 1:
            file_weights[key] = tensor
    steps = {float(q.scale): q for q in quantizers(stripped).values() if q.scale.numel() == 1}
    grids = [step for step in steps if abs(step - 0.03) < 1e-6 or abs(step - 0.024) < 1e-6]
    assert len(grids) == 2, "the step of the weights, and that of residuals"
    own = {key: 0.024 if weight.shape[1] == 1 and "body" in key else 0.03 for key, weight in file_weights.items()}
    largest = {key: round(float(file_weights[key].abs().max()) / step) for key, step in own.items()}
    small = [key for key, code in largest.items() if 0 < code <= 63]
    weighted = [q for q in quantizers(stripped).values() if float(q.scale.flatten()[0]) in grids]
    fit = [key for key, code in largest.items() if 0 < code <= 127]
    assert 10 < len(small) <= len(weighted) <= len(fit), "NNCF keeps half of the codes free in most layers"
    for key in small:
        codes = file_weights[key] / own[key]
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("description", ["", "c-rk+0RR910RR", "abc", 3])
def test_damaged_descriptions(description: Any) -> None:
    controller, _ = compressed([INT8])
    file = controller._compressed() if not LEGACY else None
    if file is None:
        from ilwp_integrations.nncf.legacy.stripping import compressed as compress_legacy

        file = compress_legacy(controller)
    damaged = file.with_others_of(file.state_dict(), {**file.metadata, "quantizers": description})
    with pytest.raises((FormatError, TensorError), match="quantizers in the metadata of the file are damaged"):
        restore(damaged, network())
