"""On a GPU: what is trained, calibrated and compressed there. Skipped where there is none; see CONTRIBUTING."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.testing import settle
from ilwp_plugin.training import FineTuning, InterLayerLoss, fine_tune
from ilwp_plugin.zoo import Dataset, Recipe, build_model, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")

GPU = torch.device("cuda")
OTHERS: list[dict[str, Any]] = [{"name": "grid"}, {"name": "batch_norm"}]
RECIPES: dict[str, dict[str, Any]] = {
    "deep_compression": {"sparsity": 0.5, "pruning": "magnitude", "prune_epochs": 1, "cluster_epoch": 2},
    "slq": {"clusters": 3, "fixed": [1, 2, 3], "epochs_per_round": 1},
    "mlq": {"rounds": 2, "epochs_per_round": 1},
    "ecsq": {"step": 0.05, "hold_from": 2},
    "universal": {"step": 0.05},
    "soft_to_hard": {"bits": 0.6, "entries": 17, "epochs": 2, "growth": 4.0},
    "soft_weight_sharing": {"assign_epoch": 2},
    "weight_fixing": {"distance": 0.1, "fractions": [0.5, 1.0], "first": 0},
}


def pictures(count: int = 64) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def network(name: str = "mobilenetv2") -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, width=0.25, in_channels=1, stem_stride=2)
    return settle(model, pictures(8)).eval()


def cross_entropy(model: nn.Module, batch: list[Tensor]) -> Tensor:
    images, labels = (values.to(GPU) for values in batch)
    return F.cross_entropy(model(images), labels)


def examples() -> TensorDataset:
    return TensorDataset(pictures(), torch.arange(64) % 10)


def on_the_cpu(state: Any) -> dict[str, Tensor]:
    return {key: tensor.cpu() for key, tensor in state.items()}


@pytest.mark.parametrize("config", [None, "paper", "lossless"])
def test_the_same_file_as_on_the_cpu(config: str | None) -> None:
    model = network()
    expected = compress(copy.deepcopy(model), config).to_bytes()
    assert compress(model.to(GPU), config).to_bytes() == expected


def test_calibrated(tmp_path: Path) -> None:
    model = network().to(GPU)
    file = compress(model, {"weight_step": 0.05}, calibration=pictures())
    file.save(tmp_path / "model.ilwp")
    again = network().to(GPU)
    load(tmp_path / "model.ilwp").apply_to(again)
    expected = file.state_dict()
    assert all(torch.equal(tensor, expected[key].cpu()) for key, tensor in on_the_cpu(again.state_dict()).items())
    with torch.no_grad():
        before, after = model(pictures().to(GPU)), again(pictures().to(GPU))
    assert (before - after).norm() < 0.2 * before.norm()
    on_cpu = compress(network(), {"weight_step": 0.05}, calibration=pictures())
    assert abs(len(file.to_bytes()) / len(on_cpu.to_bytes()) - 1) < 0.02


def test_search_for_a_drop() -> None:
    model = network().to(GPU)
    with torch.no_grad():
        labels = model(pictures().to(GPU)).argmax(1)

    def agreement(network: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((network(pictures().to(GPU)).argmax(1) == labels).float().mean())

    file = compress(model, calibration=pictures(), evaluate=agreement, max_drop=5.0)
    restored = copy.deepcopy(model)
    file.apply_to(restored)
    assert agreement(restored) >= 95


@pytest.mark.parametrize("name", ["mobilenet", "shufflenet", "resnet20", "vgg"])
def test_inter_layer_loss(name: str) -> None:
    model = network(name)
    scope = "conv" if name in ("resnet20", "vgg") else "depthwise"
    losses = [
        float(InterLayerLoss(own, IlwpConfig(loss_weight=2.0, scope=scope))())
        for own in (model, copy.deepcopy(model).to(GPU))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("loss_weight", [0.0, "auto", 3.0])
def test_whole_training(loss_weight: float | str, tmp_path: Path) -> None:
    data = Dataset("made", pictures(), torch.arange(64) % 10, pictures(), torch.arange(64) % 10, 10)
    config = None if loss_weight == 0 else IlwpConfig(loss_weight=loss_weight)

    def first_loss(device: torch.device) -> float:
        torch.manual_seed(0)
        model = build_model("mobilenet", width=0.25, in_channels=1, stem_stride=2).to(device)
        found: list[float] = []
        recipe = Recipe(epochs=2, batch=16, lr=0.01)
        train(model, data, recipe, config, lambda step, loss: found.append(loss), checkpoint=tmp_path / device.type)
        assert len(found) == 8 and all(map(math.isfinite, found))
        return found[0]

    assert first_loss(GPU) == pytest.approx(first_loss(torch.device("cpu")), rel=0.01)


@pytest.mark.parametrize("config", [{}, {"weight_step": 0.05, "rate": 0.3}, {"preset": "paper", "bits": 4}])
def test_fine_tuning(config: dict[str, Any], tmp_path: Path) -> None:
    """What it ends with is what the file restores, and an interrupted one goes on."""
    model = network().to(GPU)

    class Interrupted(Exception):
        pass

    def report(progress: Any) -> None:
        if progress.step == 5:
            raise Interrupted

    plan = FineTuning(epochs=2, batch=16, norm_batches=2, checkpoint_steps=2)
    inputs = pictures(4).to(GPU)
    with pytest.raises(Interrupted):
        fine_tune(
            copy.deepcopy(model),
            examples(),
            cross_entropy,
            config,
            plan,
            example_inputs=inputs,
            checkpoint=tmp_path / "checkpoint",
            report=report,
        )
    result = fine_tune(
        model, examples(), cross_entropy, config, plan, example_inputs=inputs, checkpoint=tmp_path / "checkpoint"
    )
    stored = result.compressed.state_dict()
    assert next(model.parameters()).device.type == GPU.type
    assert all(torch.equal(tensor, stored[key].cpu()) for key, tensor in on_the_cpu(model.state_dict()).items())


def test_fine_tuning_from_a_calibrated_network() -> None:
    model = network().to(GPU)
    plan = FineTuning(epochs=2, batch=16, norm_batches=2)
    config = {"weight_step": 0.05, "rate": 0.3}
    result = fine_tune(
        model, examples(), cross_entropy, config, plan, example_inputs=pictures(4).to(GPU), calibration=pictures()
    )
    stored = result.compressed.state_dict()
    assert all(torch.equal(tensor, stored[key].cpu()) for key, tensor in on_the_cpu(model.state_dict()).items())


def test_fine_tuning_to_a_size() -> None:
    model = network().to(GPU)
    plain = compress(copy.deepcopy(model), {"weight_step": 0.05})
    size = int(0.8 * len(plain.to_bytes()))
    plan = FineTuning(epochs=4, batch=8, norm_batches=2)
    config = {"weight_step": 0.05, "rate": 0.3}
    result = fine_tune(
        model, examples(), cross_entropy, config, plan, example_inputs=pictures(4).to(GPU), target_bytes=size
    )
    assert len(result.compressed.to_bytes()) <= size


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str) -> None:
    model = network("mobilenet").to(GPU)
    config = {"recipes": [{"name": name, **RECIPES[name]}, *OTHERS]}
    plan = FineTuning(epochs=4, batch=16, norm_batches=2)
    result = fine_tune(model, examples(), cross_entropy, config, plan, example_inputs=pictures(4).to(GPU))
    stored = result.compressed.state_dict()
    assert all(torch.equal(tensor, stored[key].cpu()) for key, tensor in on_the_cpu(model.state_dict()).items())
