"""NNCF 2's scripts as they are: names that they import, and what its controllers offer besides."""

import importlib
from typing import Any

import nncf
import pytest
import torch
import torch.nn.functional as F
from ilwp_integrations.nncf import NNCFConfig, create_compressed_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ilwp_plugin.errors import ConfigError, TensorError, TrainingError
from tests.integrations.nncf.helpers import (
    ILWP,
    INT8,
    MAGNITUDE,
    WHOLE,
    compressed,
    config_of,
    images,
    network,
    optimizer_of,
    train,
)

SPARSE = {
    "algorithm": "magnitude_sparsity",
    "sparsity_init": 0.0,
    "params": {"schedule": "multistep", "multistep_steps": [1], "multistep_sparsity_levels": [0.0, 0.5]},
}


@pytest.mark.parametrize(
    "name",
    [
        "nncf.NNCFConfig",
        "nncf.torch.create_compressed_model",
        "nncf.torch.register_default_init_args",
        "nncf.torch.load_state",
        "nncf.torch.AdaptiveCompressionTrainingLoop",
        "nncf.torch.EarlyExitCompressionTrainingLoop",
        "nncf.api.compression.CompressionStage",
        "nncf.torch.initialization.PTInitializingDataLoader",
        "nncf.torch.checkpoint_loading.load_state",
        "nncf.config.NNCFConfig",
        "nncf.config.structures.BNAdaptationInitArgs",
        "nncf.config.structures.QuantizationRangeInitArgs",
        "nncf.common.accuracy_aware_training.create_accuracy_aware_training_loop",
    ],
)
def test_names_are_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(module), attribute)


def test_loading_of_states() -> None:
    load_state = importlib.import_module("nncf.torch").load_state
    model, other = network(), network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    wrapped = {f"module.{name}": tensor for name, tensor in other.state_dict().items()}
    assert load_state(model, wrapped, is_resume=True) == len(wrapped)
    torch.testing.assert_close(model.classifier.weight, other.classifier.weight, rtol=0, atol=0)
    _controller, compressed_model = compressed([MAGNITUDE, ILWP])
    assert load_state(compressed_model, wrapped) == len(wrapped)
    with pytest.raises(TensorError, match="missing.*__nncf_hooks"):
        load_state(compressed_model, wrapped, is_resume=True)
    assert load_state(model, {"nothing": torch.zeros(1)}) == 0


def test_what_a_controller_offers() -> None:
    controller, model = compressed([SPARSE, INT8, ILWP])
    assert controller.name == "composite" and compressed(ILWP)[0].name == "ilwp"
    assert controller.compression_rate == pytest.approx(0, abs=1e-4) and controller.maximal_compression_rate == 1
    stages = importlib.import_module("nncf.api.compression").CompressionStage
    assert controller.compression_stage() == stages.PARTIALLY_COMPRESSED, "int8 is, sparsity is not yet"
    train(controller, model, optimizer_of(model), [0, 1], steps=1)
    assert controller.compression_stage() == stages.FULLY_COMPRESSED
    assert controller.compression_rate == pytest.approx(0.5, abs=0.01)
    controller.compression_rate = 0.25
    controller.scheduler.epoch_step()
    assert controller.compression_rate == pytest.approx(0.25, abs=0.01), "held, whatever the schedule says"
    controller.disable_scheduler()
    controller.scheduler.epoch_step(7)
    assert compressed(ILWP)[0].compression_rate is None
    with pytest.raises(ConfigError, match="no algorithm"):
        compressed(ILWP)[0].compression_rate = 0.5


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.beside = network(), nn.Linear(4, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x) + self.beside(y)


def test_two_inputs() -> None:
    loaders = importlib.import_module("nncf.torch.initialization")
    structures = importlib.import_module("nncf.config.structures")

    class Both(loaders.PTInitializingDataLoader):
        def get_inputs(self, dataloader_output: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (dataloader_output[0], dataloader_output[1]), {}

    data = DataLoader(TensorDataset(images(), torch.randn(8, 4), torch.arange(8)), batch_size=4)
    config = NNCFConfig.from_dict({"compression": [INT8, WHOLE]})
    config.register_extra_structs([structures.QuantizationRangeInitArgs(Both(data))])
    model = TwoInputs()
    torch.manual_seed(0)
    controller, compressed_model = create_compressed_model(model, config)
    inputs = images(), torch.randn(8, 4)
    (compressed_model(*inputs).square().mean() + controller.loss()).backward()
    stripped = controller.strip().eval()
    assert "beside.weight" in set(controller.session.parts.keys)
    assert bool(stripped(*inputs).isfinite().all())


def test_a_checkpoint_without_ilwp_and_one_of_another_config() -> None:
    plain, model = compressed([MAGNITUDE])
    state, weights = plain.get_compression_state(), model.state_dict()
    with pytest.raises(TrainingError, match="without ilwp|hooks on"):
        compressed([MAGNITUDE, ILWP], state=state)
    load_state = importlib.import_module("nncf.torch").load_state
    controller, again = compressed([MAGNITUDE, ILWP])
    assert load_state(again, weights) == len(weights), "weights and masks"
    state = controller.get_compression_state()
    with pytest.raises(TrainingError, match="another configuration.*bits: 4, now 6"):
        compressed([MAGNITUDE, {**ILWP, "bits": 6}], state=state)


def test_nncf_strip_leaves_no_hooks_of_ours() -> None:
    from ilwp_integrations.nncf import apply_ilwp, controller_of
    from ilwp_integrations.nncf.modern.hooks import weight_hooks

    model = apply_ilwp(network(), {"loss_weight": 0.0}, images())
    outputs = controller_of(model, images()).strip().eval()(images())
    stripped = nncf.strip(model, example_input=images()).eval()
    assert weight_hooks(model) and not weight_hooks(stripped)
    torch.testing.assert_close(stripped(images()), outputs, rtol=0, atol=0)
    with pytest.raises(ConfigError, match="native format"):
        nncf.strip(model, strip_format=nncf.StripFormat.DQ, example_input=images())


def accuracy_aware(section: Any, sections: Any, scores: list[float], **options: Any) -> tuple[Any, Any, list[int]]:
    """A loop whose epochs score what is listed; the best model's weights tell its epoch."""
    create = importlib.import_module("nncf.common.accuracy_aware_training").create_accuracy_aware_training_loop
    config = config_of(sections, accuracy_aware_training=section)
    controller, model = create_compressed_model(network(), config)
    seen: list[int] = []

    def train_epoch(ctrl: Any, model: nn.Module, epoch: int, optimizer: Any, lr_scheduler: Any) -> None:
        seen.append(epoch)
        ctrl.scheduler.step()
        optimizer.zero_grad()
        (F.cross_entropy(model(images()), torch.arange(8)) + ctrl.loss()).backward()
        optimizer.step()

    def configure() -> tuple[Any, Any]:
        optimizer = optimizer_of(model)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)

    loop = create(config, controller, uncompressed_model_accuracy=90.0)
    trained = loop.run(
        model,
        train_epoch_fn=train_epoch,
        validate_fn=lambda model, epoch: scores[min(epoch, len(scores) - 1)],
        configure_optimizers_fn=configure,
    )
    assert trained is model
    return loop, controller, seen


def test_early_exit() -> None:
    section = {"mode": "early_exit", "params": {"maximal_absolute_accuracy_degradation": 1, "maximal_total_epochs": 5}}
    loop, _, seen = accuracy_aware(section, [SPARSE, ILWP], [95.0, 95.0, 80.0, 89.5, 99.0])
    assert seen == [0, 1, 2], "enough only in the third epoch: before, it is not sparse, or not good enough"
    assert loop.statistics.accuracy_drop == pytest.approx(0.5) and "compression_rate" in loop.statistics.to_str()
    loop, _controller, seen = accuracy_aware(section, [SPARSE, ILWP], [50.0, 50.0, 70.0, 60.0, 40.0, 30.0])
    assert seen == list(range(5)) and loop.statistics.compressed_accuracy == 70.0, "the best one"


def test_adaptive_compression_level() -> None:
    params = {"maximal_relative_accuracy_degradation": 1.0, "initial_training_phase_epochs": 1, "patience_epochs": 1}
    params["maximal_total_epochs"] = 6
    section = {"mode": "adaptive_compression_level", "params": {**params, "initial_compression_rate_step": 0.2}}
    _loop, controller, _seen = accuracy_aware(section, [MAGNITUDE, ILWP], [90.0, 90.0, 90.0, 80.0, 90.0, 80.0])
    assert controller.compression_rate == pytest.approx(0.6, abs=0.02), "0.3, 0.5, 0.7 (too much), 0.6, 0.65 (too much)"
    with pytest.raises(ConfigError, match="needs magnitude_sparsity"):
        accuracy_aware(section, [ILWP], [90.0])
    with pytest.raises(ConfigError, match="one of maximal_relative_"):
        accuracy_aware({"mode": "early_exit", "params": {}}, [ILWP], [90.0])
    with pytest.raises(ConfigError, match="accuracy_aware_training"):
        accuracy_aware({"mode": "late_exit"}, [ILWP], [90.0])
