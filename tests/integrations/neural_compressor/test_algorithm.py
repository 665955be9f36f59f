import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ilwp_integrations
import pytest
import torch
import torch.nn.functional as F
from ilwp_integrations.neural_compressor import IlwpConfig, attached, compose, load, regularizer, save
from neural_compressor.common.base_config import ComposableConfig
from neural_compressor.torch.quantization import RTNConfig, convert, prepare, quantize
from neural_compressor.torch.quantization import load as inc_load
from neural_compressor.torch.quantization import save as inc_save
from neural_compressor.torch.utils.utility import algos_mapping
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin import compress
from ilwp_plugin import load as core_load
from ilwp_plugin.errors import ChainError, ConfigError, FormatError, TensorError, TrainingError
from ilwp_plugin.testing import IntegrationContract
from ilwp_plugin.training import TrainingRun
from tests.integrations.chained import chained, modes


class Adapter:
    def __init__(self, model: nn.Module, config: Mapping[str, Any], example: Tensor) -> None:
        self.model = prepare(model, IlwpConfig(**config), example_inputs=example)

    def loss(self) -> Tensor:
        return regularizer(self.model)()

    def finish(self) -> nn.Module:
        self.model = convert(self.model)
        return self.model

    def save(self, path: Path) -> None:
        save(self.model, path)


class TestContract(IntegrationContract):
    def attach(self, model: nn.Module, config: Mapping[str, Any], example: Tensor) -> Adapter:
        return Adapter(model, config, example)


PAPER = partial(IlwpConfig, preset="paper")
"""Chains only, so that everything else stays as it is bit for bit."""


def test_registration_is_idempotent_and_leaves_others() -> None:
    before, guarded = dict(algos_mapping), ComposableConfig.__dict__["from_dict"]
    ilwp_integrations.load("inc").register()
    assert algos_mapping == before
    assert ComposableConfig.__dict__["from_dict"] is guarded
    assert {"rtn", "gptq", "static_quant", "mixed_precision", "ilwp"} < set(algos_mapping)


def test_quantize(mobilenet: nn.Module, tmp_path: Path) -> None:
    original = copy.deepcopy(mobilenet)
    expected = compress(mobilenet, CoreConfig.paper(bits=4)).state_dict()
    quantized = quantize(mobilenet, PAPER(bits=4))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in quantized.state_dict().items())
    ledger = save(quantized, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.ilwp").stat().st_size == ledger.file_bytes
    restored = load(tmp_path / "saved", original)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in restored.state_dict().items())


def test_quantize_by_dict_as_inc_has_it(mobilenet: nn.Module) -> None:
    quantized = quantize(mobilenet, {"ilwp": {"preset": "paper", "bits": 5, "mode": "local"}})
    assert set(modes(attached(quantized).compressed)[1:]) == {"local"}


@pytest.mark.parametrize("fields", [{}, {"mode": "auto"}, {"residual_step": 0.05}], ids=str)
def test_quantize_with_training(mobilenet: nn.Module, images: Tensor, fields: dict[str, Any]) -> None:
    before = copy.deepcopy(mobilenet)
    seen = {}

    def train(model: nn.Module, steps: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.001)
        loss_of_layers = regularizer(model, TrainingRun.of(optimizer, steps))
        seen["residual"] = [float(loss_of_layers.value().detach())]
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            (F.cross_entropy(model(images), torch.arange(len(images))) + loss_of_layers()).backward()
            optimizer.step()
        seen["residual"].append(float(loss_of_layers.value().detach()))
        seen["outputs"] = model.eval()(images).detach()

    quantized = quantize(mobilenet, PAPER(bits=4, **fields), run_fn=train, run_args=(5,))
    assert seen["residual"][1] < seen["residual"][0]
    torch.testing.assert_close(quantized.eval()(images), seen["outputs"], rtol=0, atol=0)
    assert not torch.equal(quantized.classifier.weight, before.classifier.weight)


def test_not_in_place_leaves_the_model(mobilenet: nn.Module) -> None:
    before = copy.deepcopy(mobilenet.state_dict())
    quantized = quantize(mobilenet, PAPER(bits=3), inplace=False)
    prepared = prepare(mobilenet, PAPER(bits=3), inplace=False)
    converted = convert(prepared, inplace=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mobilenet.state_dict().items())
    assert all(torch.equal(tensor, quantized.state_dict()[name]) for name, tensor in converted.state_dict().items())
    with pytest.raises(TrainingError, match="inplace=False"):
        attached(mobilenet)


def test_each_part_alone(mobilenet: nn.Module, images: Tensor, tmp_path: Path) -> None:
    loss_only = prepare(copy.deepcopy(mobilenet), PAPER(bits=None, loss_weight=2.0))
    assert float(regularizer(loss_only)().detach()) > 0
    torch.testing.assert_close(loss_only.eval()(images), mobilenet.eval()(images), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="leaves nothing to save"):
        save(convert(loss_only), tmp_path)
    quantizer_only = prepare(copy.deepcopy(mobilenet), PAPER(bits=4, loss_weight=0))
    assert float(regularizer(quantizer_only)()) == 0
    with pytest.raises(TrainingError, match="auto"):
        regularizer(prepare(copy.deepcopy(mobilenet), PAPER()))


def test_local_configurations_reach_the_layers(mobilenet: nn.Module, tmp_path: Path) -> None:
    config = PAPER(bits=6).set_local("features.5.0", PAPER(bits=3, mode="none"))
    config.set_local(r"features\.7\.", PAPER(bits=None))
    quantized = quantize(mobilenet, config)
    layers = {layer.name.removesuffix(".weight"): layer for layer in chained(attached(quantized).compressed)}
    assert (layers["features.5.0"].details["bits"], layers["features.5.0"].details["mode"]) == (3, "none")
    assert layers["features.6.0"].details["bits"] == 6
    assert "features.7.0" not in layers
    save(quantized, tmp_path / "x.ilwp")  # INC's own load_config_mapping would lose the values
    stored = core_load(tmp_path / "x.ilwp").metadata["neural_compressor"]["ilwp"]
    assert CoreConfig.from_dict(stored) == attached(quantized).config
    override = stored["overrides"]["features.5.0"]
    assert (override["bits"], override["mode"], stored["bits"]) == (3, "none", 6)


def test_white_list_reaches_the_layers(mobilenet: nn.Module) -> None:
    quantized = quantize(mobilenet, PAPER(white_list=["features.4", "features.5.0", "features.9"]))
    names = [layer.name for layer in chained(attached(quantized).compressed)]
    assert names == ["features.4.0.weight", "features.5.0.weight", "features.9.0.weight"]


def test_local_configuration_of_no_chained_layer_is_refused(mobilenet: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"'features.5.3' names no layer of a chain"):
        quantize(mobilenet, PAPER().set_local("features.5.3", PAPER(bits=4)))


def test_nothing_to_compress_is_an_error_at_once(images: Tensor) -> None:
    with pytest.raises(ConfigError, match="Sequential holds no weight of two dimensions or more"):
        quantize(nn.Sequential(nn.ReLU()), IlwpConfig())
    without_chain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Linear(8, 4))
    for run in (quantize, prepare):
        with pytest.raises(ChainError, match="no chain: the model holds no convolution"):
            run(copy.deepcopy(without_chain), PAPER(bits=6), example_inputs=images)
    with pytest.raises(ConfigError, match="quantizes nothing"):
        quantize(copy.deepcopy(without_chain), PAPER(bits=None))
    with pytest.raises(ConfigError, match="white_list: None takes no layer"):
        quantize(copy.deepcopy(without_chain), IlwpConfig(white_list=None))
    small = quantize(without_chain, IlwpConfig(), example_inputs=images)
    assert set(attached(small).compressed.quantized) >= {"1.weight", "2.weight"}, "linear layers are layers, too"


def test_by_default_every_layer_is_taken(mobilenet: nn.Module, tmp_path: Path) -> None:
    fp32 = sum(tensor.nbytes for tensor in mobilenet.state_dict().values())
    expected = compress(mobilenet).state_dict()
    quantized = quantize(mobilenet, {"ilwp": {}})
    assert all(torch.equal(tensor, expected[name]) for name, tensor in quantized.state_dict().items())
    assert save(quantized, tmp_path).file_bytes < 0.28 * fp32


def test_white_lists_hold_for_every_recipe(mobilenet: nn.Module) -> None:
    before = copy.deepcopy(mobilenet.state_dict())
    quantized = quantize(mobilenet, IlwpConfig(white_list=["features.5", "classifier"]))
    changed = {name for name, tensor in quantized.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rpartition(".")[0] for name in changed} == {
        "features.5.0",
        "features.5.1",
        "features.5.3",
        "features.5.4",
        "classifier",
    }


def test_local_bits_count_whatever_the_steps_of_the_others(mobilenet: nn.Module) -> None:
    quantized = quantize(mobilenet, IlwpConfig().set_local("features.5.0", IlwpConfig(bits=3)))
    layers = {layer.name.removesuffix(".weight"): layer for layer in chained(attached(quantized).compressed)}
    assert layers["features.5.0"].details["bits"] == 3 and layers["features.6.0"].details["bits"] > 5


def test_an_empty_mapping_is_refused(mobilenet: nn.Module) -> None:
    with pytest.raises(ChainError):
        quantize(nn.Sequential(nn.Conv2d(3, 3, 3)), PAPER())
    with pytest.raises(ConfigError, match="set to tune over"):
        quantize(mobilenet, PAPER(bits=[3, 4]))


def test_another_algorithms_quantizer_is_left_alone(mobilenet: nn.Module) -> None:
    """INC's get_quantizer would take it for the one to run."""
    mobilenet.quantizer = "the user's own"
    quantized = quantize(mobilenet, PAPER(bits=4))
    assert quantized.quantizer == "the user's own"
    assert attached(quantized).compressed is not None


@pytest.mark.parametrize("composed", [False, True])
def test_the_model_is_usable_after_an_exception(mobilenet: nn.Module, composed: bool) -> None:
    before = copy.deepcopy(mobilenet.state_dict())
    rtn = RTNConfig(use_layer_wise=False)
    config = compose(PAPER(bits=4), rtn) if composed else PAPER(bits=4)

    def stop(model: nn.Module) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(mobilenet, config, run_fn=stop)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mobilenet.state_dict().items())
    assert list(mobilenet.state_dict()) == list(before) and not mobilenet._forward_pre_hooks
    assert attached(quantize(mobilenet, config, run_fn=lambda model: None)).compressed is not None


def test_wrong_order_is_refused(mobilenet: nn.Module, tmp_path: Path) -> None:
    prepared = prepare(mobilenet, PAPER(bits=4))
    with pytest.raises(TrainingError, match="call convert"):
        save(prepared, tmp_path)
    with pytest.raises(TrainingError, match="prepared already"):
        prepare(prepared, PAPER(bits=4))
    converted = convert(prepared)
    with pytest.raises(TrainingError, match="converted already"):
        convert(converted)


def test_saving_by_inc_and_what_its_loader_says(mobilenet: nn.Module, tmp_path: Path) -> None:
    original = copy.deepcopy(mobilenet)
    quantized = quantize(mobilenet, PAPER(bits=4))
    inc_save(quantized, str(tmp_path))
    assert torch.equal(load(tmp_path, copy.deepcopy(original)).features[4][0].weight, quantized.features[4][0].weight)
    with pytest.raises(ValueError, match="qconfig.json"):  # not None, as for other algorithms that it does not know
        inc_load(str(tmp_path), original_model=original)


def test_saving_what_has_changed(mobilenet: nn.Module, tmp_path: Path) -> None:
    original = copy.deepcopy(mobilenet)
    quantized = quantize(mobilenet, PAPER(bits=4))
    with torch.no_grad():
        quantized.classifier.bias.add_(1)
    save(quantized, tmp_path)
    assert torch.equal(load(tmp_path, original).classifier.bias, quantized.classifier.bias)
    with torch.no_grad():
        quantized.features[4][0].weight.add_(1)
    with pytest.raises(TensorError, match="'features.4.0.weight' is changed"):
        save(quantized, tmp_path)


def test_files_of_others_are_refused(mobilenet: nn.Module, tmp_path: Path) -> None:
    compress(mobilenet).save(tmp_path / "x.ilwp")
    with pytest.raises(FormatError, match="apply_to"):
        load(tmp_path / "x.ilwp", mobilenet)
    assert core_load(tmp_path / "x.ilwp").metadata == {}
