"""Networks that pruning finds hard: each works, or says at once what it lacks."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from ilwp_integrations.torch_pruning import IlwpImportance, IlwpPruner, ProvenanceTracker, align
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.errors import ConfigError, TensorError
from ilwp_plugin.training import FineTuning, InterLayerLoss, fine_tune
from tests.integrations.chained import chained

from .networks import ConvNeXt, Residual, ShuffleNetV2, UNet, settled


@pytest.fixture
def example() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def pruner_of(model: nn.Module, example: Tensor, importance: Any, ignored: list[nn.Module]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters outside modules
        return tp.pruner.BasePruner(model, example, importance, pruning_ratio=0.3, ignored_layers=ignored)


def change(model: nn.Module, before: nn.Module, example: Tensor) -> float:
    expected = copy.deepcopy(before).double()(example.double())
    found = copy.deepcopy(model).double()(example.double())
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def test_transposed_convolutions(example: Tensor, tmp_path: Path) -> None:
    """Their outputs are the second dimension of their weights; no chain holds them."""
    model = settled(UNet, example)
    tracker = ProvenanceTracker(model)
    importance = IlwpImportance(tp.importance.MagnitudeImportance(), tracker)
    IlwpPruner(pruner_of(model, example, importance, [model.out]), tracker).step()
    assert model.up.weight.shape[0] < 32 and "up" not in tracker.provenance and "stem.0" in tracker.provenance
    compress(model, references=tracker.provenance).save(tmp_path / "u.ilwp")
    restored = load(tmp_path / "u.ilwp").restore(UNet()).eval()
    load(tmp_path / "u.ilwp").apply_to(model)
    assert torch.equal(restored(example), model(example))


@pytest.mark.parametrize("mode", ["collocated", "auto", "none"])
def test_scope_conv(example: Tensor, tmp_path: Path, mode: str) -> None:
    """Kernels are slices of channels there: origins are stored, and the mode chooses references by its own rule."""
    model = settled(Residual, example)
    config, tracker = IlwpConfig.paper(scope="conv", mode=mode, loss_weight=2.0), ProvenanceTracker(model)
    magnitude = tp.importance.MagnitudeImportance()
    with pytest.raises(ConfigError, match="scope: under 'conv' kernels are slices of channels.*another importance"):
        IlwpImportance(magnitude, tracker, config)
    pruner = IlwpPruner(pruner_of(model, example, magnitude, [model.classifier]), tracker, config)
    pruner.step()
    model(example).sum().backward()
    pruner.regularize(model)
    plain = InterLayerLoss(model, config)
    assert float(InterLayerLoss(model, config, references=tracker.provenance).value()) == float(plain.value())
    compressed = compress(model, config, references=tracker.provenance)
    compressed.save(tmp_path / "r.ilwp")
    stored = load(tmp_path / "r.ilwp")
    assert len(stored.provenance["stem.0.weight"].survivors) == model.stem[0].out_channels < 16
    assert "ancestral" not in {layer.details["mode"] for layer in chained(stored)}
    restored = stored.restore(Residual()).eval()
    stored.apply_to(model)
    assert torch.equal(restored(example), model(example))
    data = torch.utils.data.TensorDataset(example, torch.arange(4))
    fine_tune(
        model,
        data,
        lambda network, batch: nn.functional.cross_entropy(network(batch[0]), batch[1]),
        config,
        FineTuning(epochs=1, batch=4),
        references=tracker.provenance,
    )


def test_layer_norms_and_layer_scales(example: Tensor, tmp_path: Path) -> None:
    """The channels of a stage have one order, which all its layers share; nothing else is free."""
    model = settled(ConvNeXt, example)
    before = copy.deepcopy(model)
    report = align(model, example)
    assert change(model, before, example) < 1e-5
    assert set(report.aligned) == {"first.0.depthwise", "second.0.depthwise"}
    shared = "its channels are also those of a layer that is aligned already"
    assert dict(report.refused) == {"first.1.depthwise": shared, "second.1.depthwise": shared}
    assert not torch.equal(model.second[0].scale, before.second[0].scale)
    config = IlwpConfig.paper(bits=5)
    assert compress(model, config).ledger.total_bytes < compress(before, config).ledger.total_bytes

    tracker = ProvenanceTracker(model)
    IlwpPruner(pruner_of(model, example, tp.importance.MagnitudeImportance(), [model.classifier]), tracker).step()
    assert len(model.first[0].scale) < 16
    compressed = compress(model, references=tracker.provenance)
    compressed.save(tmp_path / "c.ilwp")
    restored = load(tmp_path / "c.ilwp").restore(ConvNeXt()).eval()
    compressed.apply_to(model)
    assert torch.equal(restored(example), model(example))


def test_channel_shuffles(example: Tensor, tmp_path: Path) -> None:
    """torch-pruning does not see through them: layers that they reach are refused, or have to be ignored."""
    model = settled(ShuffleNetV2, example)
    before = copy.deepcopy(model)
    report = align(model, example)
    assert change(model, before, example) < 1e-5
    assert set(report.aligned) == {"units.0.side.0", *(f"units.{unit}.main.1" for unit in range(4))}
    (refused,) = report.refused.items()
    assert refused == ("units.2.side.0", "torch-pruning finds channels in a BatchNorm2d that it does not have")

    def prune(*ignored: nn.Module) -> ProvenanceTracker:
        tracker = ProvenanceTracker(model)
        importance = IlwpImportance(tp.importance.MagnitudeImportance(), tracker)
        IlwpPruner(pruner_of(model, example, importance, [model.classifier, *ignored]), tracker).step()
        return tracker

    with pytest.raises(TensorError, match="torch-pruning cannot prune ShuffleNetV2 .*IndexError.*`ignored_layers`"):
        prune()
    model = settled(ShuffleNetV2, example)
    tracker = prune(*(m[-1][0] for n, m in model.named_modules() if n.endswith(("main", "side")) and len(m)))
    assert sum(p.numel() for p in model.parameters()) < 0.8 * sum(p.numel() for p in before.parameters())
    compressed = compress(model, references=tracker.provenance)
    compressed.save(tmp_path / "s.ilwp")
    restored = load(tmp_path / "s.ilwp").restore(ShuffleNetV2()).eval()
    compressed.apply_to(model)
    assert torch.equal(restored(example), model(example))
