import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from ilwp_integrations.torch_pruning import IlwpImportance, IlwpPruner, ProvenanceTracker
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.errors import TensorError, TrainingError
from ilwp_plugin.method.loss import inter_layer_loss
from ilwp_plugin.method.provenance import ancestral_references
from ilwp_plugin.recipes.ilwp import chains_of
from ilwp_plugin.testing import settle
from ilwp_plugin.training import FakeQuantizer, FineTuning, InterLayerLoss, fine_tune
from ilwp_plugin.zoo import build_model
from tests.integrations.chained import modes


@pytest.fixture
def example() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def network(name: str, example: Tensor, width: float = 0.25) -> nn.Module:
    """As the inter-layer loss leaves it: collocated kernels nearly equal. Batch norms tell channels apart."""
    torch.manual_seed(0)
    model = build_model(name, width=width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.copy_(torch.rand(module.num_features) + 0.5)
    chain = chains_of(model, IlwpConfig().ilwp()).chains[0]
    kernels = [model.get_submodule(layer).weight for layer in chain.layers]
    for before, layer in itertools.pairwise(kernels):
        collocated = before.data[torch.arange(len(layer)) % len(before)]  # type: ignore[arg-type,index]
        layer.data = collocated + 0.02 * torch.randn(layer.shape)  # type: ignore[operator,arg-type]
    return settle(model, example)


def ordinary(model: nn.Module, example: Tensor, ratio: float, steps: int = 1, **options: Any) -> Any:
    classifier = model.classifier
    importance = options.pop("importance", tp.importance.MagnitudeImportance())
    return tp.pruner.BasePruner(
        model, example, importance, pruning_ratio=ratio, iterative_steps=steps, ignored_layers=[classifier], **options
    )


def residual(model: nn.Module, provenance: Any) -> float:
    layers = chains_of(model, IlwpConfig().ilwp()).chains[0].layers
    kernels = [model.get_submodule(layer).weight for layer in layers]
    references = None if provenance is None else [ancestral_references([provenance[layer] for layer in layers])]
    return float(inter_layer_loss([kernels], references))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mobilenet", "mobilenetv2"])
def test_survivors_hold_what_they_held(name: str, example: Tensor) -> None:
    """The independent witness: every channel carries its original number in its batch norm's bias."""
    model = network(name, example)
    layers = chains_of(model, IlwpConfig().ilwp()).chains[0].layers
    following = {}
    previous = ""
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data = torch.arange(module.num_features).float()
            following[previous] = module
        previous = path
    tracker = ProvenanceTracker(model)
    pruner = IlwpPruner(ordinary(model, example, 0.5, steps=3), tracker)
    for step in range(3):
        if step == 1:
            for group in pruner.step(interactive=True) or ():
                group.prune()
        else:
            pruner.step()
    for layer, origin in pruner.provenance.items():
        if layer in following:
            assert torch.equal(following[layer].bias.data.long(), origin.survivors), layer
    assert sum(len(pruner.provenance[layer].survivors) for layer in layers) < 0.7 * sum(
        pruner.provenance[layer].channels for layer in layers
    )


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("name", ["mobilenet", "mobilenetv2"])
def test_survivors_keep_their_references(name: str, ratio: float, example: Tensor, tmp_path: Path) -> None:
    model = network(name, example)
    before = residual(model, None)
    pruner = IlwpPruner(ordinary(model, example, ratio), ProvenanceTracker(model))
    pruner.step()
    naive, kept = residual(model, None), residual(model, pruner.provenance)
    assert kept < 2 * before and kept < naive / 5, "an ancestor in place of a pruned parent costs a little"
    assert kept > 1.1 * before, "which is what IlwpImportance avoids"

    model.eval()
    config = IlwpConfig.paper(bits=8)
    stored = compress(model, config, references=pruner.provenance)
    stored.save(tmp_path / "pruned.ilwp")
    loaded = load(tmp_path / "pruned.ilwp")
    assert set(modes(loaded)[1:]) <= {"ancestral", "collocated"}
    assert "ancestral" in modes(loaded)
    assert stored.ledger.file_bytes == (tmp_path / "pruned.ilwp").stat().st_size == loaded.ledger.file_bytes
    assert loaded.ledger.total_bytes < compress(model, config).ledger.total_bytes
    assert loaded.to_bytes() == stored.to_bytes()
    for layer, origin in loaded.provenance.items():
        assert torch.equal(origin.survivors, pruner.provenance[layer.removesuffix(".weight")].survivors)

    original = loaded.restore(build_model(name, width=0.25)).eval()
    stored.apply_to(model)
    assert torch.equal(original(example), model(example))
    assert [str(m) for m in original.modules()] == [str(m) for m in model.modules()]


def test_training_helpers_take_provenance(example: Tensor, tmp_path: Path) -> None:
    model = network("mobilenet", example)
    pruner = IlwpPruner(ordinary(model, example, 0.3), ProvenanceTracker(model))
    pruner.step()
    config = IlwpConfig.paper(bits=4, loss_weight=1.0)
    loss = InterLayerLoss(model, config, references=pruner.provenance)
    assert float(loss.value()) == pytest.approx(residual(model, pruner.provenance))
    quantizer = FakeQuantizer(model, config, references=pruner.provenance)
    weights = {n: m.weight.clone() for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    quantizer.remove()
    stored = compress(model, config, references=pruner.provenance).state_dict()
    assert all(torch.equal(weight, stored[f"{name}.weight"]) for name, weight in weights.items())

    data = torch.utils.data.TensorDataset(example, torch.arange(4))
    fine_tune(
        model,
        data,
        lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        config,
        FineTuning(epochs=2, batch=4),
        references=pruner.provenance,
        out=tmp_path / "x.ilwp",
    )
    assert "ancestral" in modes(load(tmp_path / "x.ilwp"))


def test_other_modes_keep_their_rule_and_store_the_provenance(example: Tensor) -> None:
    model = network("mobilenet", example)
    pruner = IlwpPruner(ordinary(model, example, 0.3), ProvenanceTracker(model))
    pruner.step()
    plain = compress(model, {"preset": "paper", "mode": "none"})
    stored = compress(model, {"preset": "paper", "mode": "none"}, references=pruner.provenance)
    assert set(modes(stored)[1:]) == {"none"} and stored.provenance
    extra = stored.ledger.file_bytes - plain.ledger.file_bytes
    channels = sum(origin.channels for name, origin in pruner.provenance.items() if name in stored.left)
    assert 0 < extra < channels / 8 + 200, "a bit for each original channel of a group of layers"


def equal(group: Any, **_: Any) -> Tensor:
    return torch.ones(len(group[0].idxs))


def everything(model: nn.Module, layer: str, example: Tensor) -> Any:
    module = model.get_submodule(layer)
    graph = tp.DependencyGraph().build_dependency(model, example)
    return graph.get_pruning_group(module, tp.prune_depthwise_conv_out_channels, list(range(module.out_channels)))  # type: ignore[arg-type]


def test_importance_prefers_what_is_cheap_to_predict(example: Tensor) -> None:
    """In the last layer, on which no other kernel depends, of the kernels that share a reference."""
    model = network("mobilenet", example)
    layers = chains_of(model, IlwpConfig().ilwp()).chains[0].layers
    last, before = (model.get_submodule(layer).out_channels for layer in (layers[-1], layers[-2]))
    assert last == 2 * before  # type: ignore[operator]
    dear = [1, 5, 6]
    model.get_submodule(layers[-1]).weight.data[dear] += 0.5  # type: ignore[operator,index,union-attr]
    tracker = ProvenanceTracker(model)
    group = everything(model, layers[-1], example)
    importance = IlwpImportance(equal, tracker, strength=1.0)(group)
    assert importance is not None
    assert all(importance[j] < importance[j + before] for j in dear)  # type: ignore[operator]
    without = IlwpImportance(equal, tracker)(group)
    torch.testing.assert_close(without, torch.ones_like(importance))
    assert IlwpImportance(lambda group: None, tracker)(group) is None


def test_importance_is_that_of_the_family(example: Tensor) -> None:
    """A kernel that is worth much keeps its references, and all that these predict."""
    model = network("mobilenet", example)
    layers = chains_of(model, IlwpConfig().ilwp()).chains[0].layers
    worthy = model.get_submodule(layers[6])

    def other(group: Any, **_: Any) -> Tensor:
        values = equal(group)
        if group[0].dep.target.module is worthy:
            values[13] = 50
        return values

    importance = IlwpImportance(other, ProvenanceTracker(model))
    roots = model.get_submodule(layers[0]).out_channels
    for layer in layers:
        scores = importance(everything(model, layer, example))
        assert scores is not None
        family = torch.arange(len(scores)) % roots == 13 % roots  # type: ignore[operator]
        assert float(scores[family].min()) > float(scores[~family].max())


def test_costs_are_averaged_over_the_family(example: Tensor) -> None:
    """A sixth of its kernels that cost nothing make a family a sixth cheaper, not worth several times as much."""
    model = network("mobilenet", example)
    layers = chains_of(model, IlwpConfig().ilwp()).chains[0].layers
    roots = int(model.get_submodule(layers[0]).out_channels)  # type: ignore[arg-type]
    before, last = (model.get_submodule(layer).weight for layer in layers[-2:])
    last.data[5::roots] = before.data.repeat(2, 1, 1, 1)[5::roots]  # type: ignore[operator,index,union-attr]

    def other(group: Any, **_: Any) -> Tensor:
        values = equal(group)
        values[3::roots] = 1.5
        return values

    importance = IlwpImportance(other, ProvenanceTracker(model), strength=1.0)
    scores = importance(everything(model, layers[-1], example))
    assert scores is not None
    family = torch.arange(len(scores)) % roots
    best, cheap, others = (float(scores[which].mean()) for which in (family == 3, family == 5, family == 0))
    assert best > cheap > 1.05 * others


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize(("steps", "most"), [(1, 1.1), (3, 1.15)])
@pytest.mark.parametrize("name", ["mobilenet", "mobilenetv2"])
def test_residual_stays(name: str, steps: int, most: float, ratio: float, example: Tensor) -> None:
    """Although a kernel without any ancestor costs some 15 times as much as one with a reference here; rounding leaves
    a few of them, more in several steps."""
    model = network(name, example, 0.5)
    before = residual(model, None)
    tracker = ProvenanceTracker(model)
    importance = IlwpImportance(tp.importance.MagnitudeImportance(), tracker)
    pruner = IlwpPruner(ordinary(model, example, ratio, steps, importance=importance), tracker)
    for _ in range(steps):
        pruner.step()
    layers = chains_of(model, IlwpConfig().ilwp()).chains[0].layers
    left = sum(len(tracker.provenance[layer].survivors) for layer in layers)
    assert left < (1 - ratio) * 1.05 * sum(tracker.provenance[layer].channels for layer in layers)
    assert residual(model, tracker.provenance) < most * before


@pytest.mark.parametrize("kind", [tp.pruner.BasePruner, tp.pruner.GroupNormPruner, tp.pruner.BNScalePruner])
def test_regularize_adds_the_gradient_of_the_loss(kind: Any, example: Tensor) -> None:
    model = network("mobilenet", example)
    options = {"pruning_ratio": 0.3, "ignored_layers": [model.classifier]}
    plain = kind(model, example, tp.importance.MagnitudeImportance(), **options)
    twin = copy.deepcopy(model)
    pruner = IlwpPruner(plain, ProvenanceTracker(model), loss_weight=3.0)
    theirs = kind(
        twin, example, tp.importance.MagnitudeImportance(), **{**options, "ignored_layers": [twin.classifier]}
    )
    for p in (plain, theirs):
        p.update_regularizer()
    for m in (model, twin):
        m(example).square().mean().backward()
    pruner.regularize(model)
    if kind is not tp.pruner.BasePruner:
        theirs.regularize(twin)
    InterLayerLoss(twin, IlwpConfig(loss_weight=3.0))().backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    pruner.step()
    assert pruner.current_step == 1, "what is not ours is the pruner's"
    model.zero_grad()
    model(example).sum().backward()
    pruner.update_regularizer()
    pruner.regularize(model)


def test_what_cannot_be_tracked_is_refused(example: Tensor) -> None:
    model = network("mobilenet", example)
    tracker = ProvenanceTracker(model)
    pruner = IlwpPruner(ordinary(model, example, 0.3), tracker)
    group = next(iter(pruner.step(interactive=True) or ()))
    with pytest.raises(TensorError, match="takes no channels here"):
        group.prune([1])
    ordinary(model, example, 0.5).step()
    with pytest.raises(TensorError, match="the tracker knows of 8"):
        _ = tracker.provenance
    with pytest.raises(TrainingError, match="loss_weight='auto'"):
        other = network("mobilenet", example)
        IlwpPruner(ordinary(other, example, 0.3), ProvenanceTracker(other)).regularize(other)
