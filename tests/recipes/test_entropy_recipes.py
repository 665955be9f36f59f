"""ECSQ, universal, soft-to-hard and weight fixing: what each is about, and what all of them promise."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.format import DitheredSection, dither
from ilwp_plugin.method.entropy_constrained import lloyd
from ilwp_plugin.method.weight_fixing import powers_of_two
from ilwp_plugin.recipes.ecsq import EcsqTraining
from ilwp_plugin.recipes.soft_to_hard import SoftToHardTraining
from ilwp_plugin.testing import settle
from ilwp_plugin.training import FakeQuantizer
from tests.recipes.training import check_training

RECIPES: dict[str, dict[str, Any]] = {
    "ecsq": {"step": 0.05},
    "trained entries": {"name": "ecsq", "step": 0.05, "train": "entries"},
    "universal": {"step": 0.05},
    "trained levels": {"name": "universal", "step": 0.05, "levels": "trained"},
    "soft_to_hard": {"entries": 8, "epochs": 2, "bits": 1.5},
    "weight_fixing": {"distance": 0.2, "fractions": [0.4, 0.8, 1.0], "first": 1},
}
CODEBOOKS = ["ecsq", "trained entries", "soft_to_hard", "weight_fixing"]

pytestmark = pytest.mark.filterwarnings("ignore:.*becomes 0 as a whole", "ignore:.*tensors in full precision")


def config(name: str, *before: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"recipes": [*before, {"name": name, **RECIPES[name], **options}]}


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def weights_of(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in state.values() if value.dim() > 1])


class Small(nn.Module):
    """A chain of two depthwise layers, and dense ones around it; about 9,000 weights."""

    def __init__(self) -> None:
        super().__init__()

        def layer(c_in: int, c_out: int, kernel: int, groups: int = 1, stride: int = 1) -> nn.Module:
            conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())

        self.stem = layer(3, 32, 3, stride=2)
        self.first = nn.Sequential(layer(32, 32, 3, 32), layer(32, 64, 1))
        self.second = nn.Sequential(layer(64, 64, 3, 64, stride=2), layer(64, 64, 1))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.second(self.first(self.stem(x))).mean(dim=(2, 3)))
        return logits


@pytest.fixture
def network(images: Tensor) -> nn.Module:
    torch.manual_seed(0)
    return settle(Small(), images).train()


@pytest.fixture
def data(images: Tensor) -> TensorDataset:
    return TensorDataset(images.repeat(4, 1, 1, 1), torch.arange(4).repeat(4))


@pytest.mark.parametrize("name", RECIPES)
def test_without_training(network: nn.Module, images: Tensor, tmp_path: Path, name: str) -> None:
    """From JSON; alone, and with ilwp for the depthwise kernels and calibration for the norms."""
    (tmp_path / "x.json").write_text(json.dumps(config(name)))
    compressed = compress(network, IlwpConfig.from_file(tmp_path / "x.json"))
    ledger = compressed.save(tmp_path / "x.ilwp")
    stored = load(tmp_path / "x.ilwp").state_dict()
    whole = weights_of(stored)
    if name in CODEBOOKS:
        assert len(whole.unique()) < 130
        assert ledger.codebook_bytes and ledger.indices_bytes
    else:
        assert ledger.dithered_bytes and len(whole.unique()) > 1_000
    original = weights_of(network.state_dict())
    assert 0 < float((whole - original).std()) < float(original.std())
    assert ledger.file_bytes == (tmp_path / "x.ilwp").stat().st_size < 11_000
    stack = config(name, {"name": "ilwp", "bits": 6})
    stack["recipes"].append({"name": "batch_norm"})
    both = compress(network, stack, calibration=images)
    kinds = {layer.name: layer.kind for layer in both.layers}
    own = ["codebook", "arranged"] if name in CODEBOOKS else ["dithered"]
    assert kinds["second.0.0.weight"] == "chain" and kinds["second.1.0.weight"] in own
    assert "batch_norm" in kinds.values()


@pytest.mark.parametrize("name", RECIPES)
def test_training_ends_with_what_it_has_computed_with(
    network: nn.Module, data: TensorDataset, tmp_path: Path, name: str
) -> None:
    """And with the same bits when it was interrupted, between epochs and within one; beside ilwp."""
    check_training(network, data, loss, config(name, {"name": "ilwp", "bits": 6}), tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_zeros_of_pruning_stay(network: nn.Module, images: Tensor, name: str) -> None:
    layer = network.get_submodule("second.1.0")
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        layer.weight.masked_fill_(mask, 0)
    assert not compress(network, config(name)).state_dict()["second.1.0.weight"][mask].any()
    quantizer = FakeQuantizer(network, config(name))
    optimizer = torch.optim.SGD([*network.parameters(), *quantizer.parts.parameters()], 0.01)
    for epoch in range(3):
        quantizer.parts.begin_epoch(epoch)
        (loss(network, [images, torch.arange(4)]) + quantizer.parts.loss()).backward()
        assert all(parameter.grad is not None for parameter in network.parameters()), "DDP waits for each"
        optimizer.step()
        quantizer.parts.after_step()
        assert not layer.weight[mask].any()
    quantizer.parts.finish()
    numbers = quantizer.parts.statistics()
    kind = "codes" if name not in CODEBOOKS else "values"
    title = RECIPES[name].get("name", name)
    assert {f"{title}: distinct {kind}", f"{title}: entropy in bits", f"{title}: zeros"} <= set(numbers)
    quantizer.remove()
    assert not quantizer.compressed().state_dict()["second.1.0.weight"][mask].any()


# --- ECSQ


def test_ecsq_is_one_table_for_all_layers(network: nn.Module) -> None:
    restored = compress(network, config("ecsq", rate_weight=0.2)).state_dict()
    values = weights_of(network.state_dict())
    expected = lloyd(values, None, 0.05, 0.2 * 0.05**2)
    assert torch.equal(weights_of(restored), expected.entries[expected.indices])


def test_ecsq_is_smaller_than_rounding() -> None:
    """At the same error of the weights, both under Huffman codes: what its bits in the cost are for."""
    spread = torch.rand(200, 200, generator=torch.Generator().manual_seed(0)) * 0.9998 + 0.0001
    weight = torch.distributions.Laplace(0, 0.05).icdf(spread)

    def measured(recipe: dict[str, Any]) -> tuple[int, float]:
        compressed = compress({"a.weight": weight}, {"recipes": [{"coder": "huffman", **recipe}]})
        error = float((compressed.state_dict()["a.weight"] - weight).square().mean())
        return compressed.ledger.file_bytes, error

    rounded = measured({"name": "grid", "weight_step": 0.1, "biases": False})
    better = measured({"name": "ecsq", "step": 0.079, "rate_weight": 0.15})
    assert better[1] <= rounded[1] and better[0] < 0.95 * rounded[0]


def test_ecsq_errors_go_where_they_cost_least(network: nn.Module, images: Tensor) -> None:
    """The second moments of the gradients are those of backward passes, and weigh the errors."""
    quantizer = FakeQuantizer(network, config("ecsq", rate_weight=0.3))
    quantizer.parts.begin_epoch(0)
    loss(network, [images, torch.arange(4)]).backward()
    (part,) = quantizer.parts.parts
    assert isinstance(part, EcsqTraining)
    moments = part.state()["moments"]
    raw = quantizer.raw_weights()
    assert len(moments) == len(raw)
    for key, weight in raw.items():
        assert weight.grad is not None
        torch.testing.assert_close(moments[key], weight.grad.square())
    original = {key: value.clone() for key, value in part.weights().items()}
    quantizer.parts.begin_epoch(1)
    errors = torch.cat([(v - original[k]).flatten() for k, v in quantizer.parts.reconstructed().items()]).square()
    size = torch.cat([moments[key].flatten() for key in original])
    heavy = size > size.median()
    assert float(errors[heavy].mean()) < 0.9 * float(errors[~heavy].mean())


def test_ecsq_weights_learn(network: nn.Module, images: Tensor) -> None:
    """They get entries anew in each step, and a new table in each epoch; the gradient goes straight through."""
    quantizer = FakeQuantizer(network, config("ecsq"))
    (part,) = quantizer.parts.parts
    quantizer.parts.begin_epoch(0)
    loss(network, [images, torch.arange(4)]).backward()
    quantizer.parts.begin_epoch(1)
    before = part.reconstructed()
    layer = network.get_submodule("second.1.0")
    assert torch.equal(layer.weight, before["second.1.0.weight"])
    raw = layer.parametrizations.weight.original
    raw.grad = None
    layer.weight.sum().backward()
    assert torch.equal(raw.grad, torch.ones_like(raw))
    with torch.no_grad():
        raw.add_(0.06)
    after = part.reconstructed()["second.1.0.weight"]
    assert 0.03 < float((after - before["second.1.0.weight"]).mean()) < 0.09
    assert set(after.unique().tolist()) <= set(torch.cat([v.flatten() for v in before.values()]).tolist())
    quantizer.parts.begin_epoch(2)
    assert not set(part.reconstructed()["second.1.0.weight"].unique().tolist()) <= set(after.unique().tolist())


def test_ecsq_entries_learn(network: nn.Module, images: Tensor) -> None:
    quantizer = FakeQuantizer(network, config("trained entries"))
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    (part,) = quantizer.parts.parts
    assert isinstance(part, EcsqTraining)
    tables = []
    for epoch in range(3):
        quantizer.parts.begin_epoch(epoch)
        optimizer.zero_grad()
        loss(network, [images, torch.arange(4)]).backward()
        optimizer.step()
        tables.append(part.final())
    codes = [torch.cat([own.indices for own in table.codes.values()]) for table in tables[1:]]
    assert torch.equal(codes[0], codes[1]), "their members stay"
    zero = tables[1].books[0][:, 0] == 0
    assert int(zero.sum()) == 1 and bool((tables[1].books[0] != tables[2].books[0])[~zero].all())


# --- universal


def test_universal_files_need_no_table(network: nn.Module) -> None:
    """Code and seed say all: numpy alone restores the file."""
    compressed = compress(network, config("universal", seed=11))
    (section,) = (s for s in compressed.sections if isinstance(s, DitheredSection))
    assert section.lattice.levels is None and section.lattice.seed == 11 and compressed.ledger.levels_bytes == 1
    restored = compressed.state_dict()
    for number, tensor in enumerate(section.tensors):
        codes = tensor.codes.ravel().astype(np.float32)
        values = (codes - dither(11, number, 0, codes.size)) * np.float32(0.05)
        expected = np.where(codes == 0, np.float32(0), values)
        assert np.array_equal(restored[tensor.info.name].numpy().ravel(), expected)
    other = compress(network, config("universal", seed=12))
    assert not torch.equal(weights_of(other.state_dict()), weights_of(restored))


def test_universal_levels_learn(network: nn.Module, images: Tensor) -> None:
    quantizer = FakeQuantizer(network, config("trained levels"))
    quantizer.parts.begin_epoch(0)
    quantizer.parts.begin_epoch(1)
    (part,) = quantizer.parts.parts
    before = part.state()["trained"]
    for _ in range(3):
        loss(network, [images, torch.arange(4)]).backward()
        quantizer.parts.after_step()
    after = part.state()["trained"]
    assert all(torch.equal(after[0][key], codes) for key, codes in before[0].items()), "codes stay"
    assert torch.equal(before[2], torch.arange(len(before[2])).float() + before[1])
    assert not torch.equal(before[2], after[2])
    network.eval()
    seen = network(images).detach()
    quantizer.remove()
    compressed = quantizer.compressed()
    (section,) = (s for s in compressed.sections if isinstance(s, DitheredSection))
    assert section.lattice.levels is not None
    assert section.lattice.levels.tolist() == after[2].tolist()
    compressed.apply_to(network)
    assert torch.equal(network(images), seen)


# --- soft to hard


def test_soft_assignments_harden_at_the_entropy_that_is_asked_for(network: nn.Module, images: Tensor) -> None:
    bits = 1.9
    options = {"bits": bits, "epochs": 3, "entries": 16, "beta": 50.0, "lr": 1e-3, "growth": 8.0}
    quantizer = FakeQuantizer(network, config("soft_to_hard", **options))
    (part,) = quantizer.parts.parts
    assert isinstance(part, SoftToHardTraining)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    gaps = []
    for epoch in range(4):
        quantizer.parts.begin_epoch(epoch)
        for _ in range(5):
            optimizer.zero_grad()
            (loss(network, [images, torch.arange(4)]) + quantizer.parts.loss()).backward()
            optimizer.step()
            quantizer.parts.after_step()
        hard = quantizer.parts.reconstructed()
        soft = {key: part.weight(key, part.sources[key].weight()).detach() for key in hard}
        gaps.append(float(torch.cat([(soft[key] - hard[key]).flatten() for key in hard]).abs().mean()))
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] == 0
    assert part.statistics()["soft_to_hard: entropy in bits"] < bits + 0.1


def test_soft_assignments_go_on_from_other_weights(network: nn.Module, images: Tensor) -> None:
    """Whose own centres would be more or fewer: those of the checkpoint count."""
    with torch.no_grad():
        other = copy.deepcopy(network)
        for parameter in other.parameters():
            parameter.copy_(parameter.sign() * 0.1)
    quantizers = [FakeQuantizer(model, config("soft_to_hard")) for model in (network, other)]
    states = []
    for quantizer in quantizers:
        quantizer.parts.load_state_dict(quantizers[0].parts.state_dict())
        states.append(quantizer.parts.state_dict()["parts"][0]["centres"]["values"])
    assert [value.tolist() for value in states[0].values()] == [value.tolist() for value in states[1].values()]


def test_vectors(network: nn.Module) -> None:
    """Of several weights; layers that the width does not divide are taken weight by weight."""
    compressed = compress(network, config("soft_to_hard", width=8, entries=40, bits=0.5))
    widths = {
        layer.name: layer.details["width"] for layer in compressed.layers if layer.kind in ("codebook", "arranged")
    }
    state = network.state_dict()
    assert widths == {name: 8 if state[name].numel() % 8 == 0 else 1 for name in widths}
    pruned = {name: value * (torch.rand_like(value.float()) < 0.5) for name, value in state.items()}
    with pytest.raises(ConfigError, match="would not stay 0 in vectors of 8; set `width` to 1"):
        compress(pruned, config("soft_to_hard", width=8))


# --- weight fixing


def test_weight_fixing_uses_few_cheap_values(network: nn.Module) -> None:
    restored = compress(network, config("weight_fixing")).state_dict()
    original = weights_of(network.state_dict())
    whole = weights_of(restored)
    values = whole.unique().tolist()
    assert len(values) < 40 and all(powers_of_two(value, 1e-6)[1] <= 2 for value in values)
    kept = whole != 0
    assert float(((whole - original).abs() / original.abs())[kept].mean()) < 0.21
    assert float(original[~kept].abs().max()) < 0.0079


def test_weights_are_fixed_in_rounds(network: nn.Module, images: Tensor) -> None:
    quantizer = FakeQuantizer(network, config("weight_fixing", regularizer=1.0))
    (part,) = quantizer.parts.parts
    optimizer = torch.optim.SGD(quantizer.raw_weights().values(), 0.01)
    held = None
    pulls = []
    for epoch, share in enumerate((0.0, 0.4, 0.8, 1.0)):
        quantizer.parts.begin_epoch(epoch)
        assert part.statistics()["weight_fixing: share that is fixed"] == pytest.approx(
            share, abs=0.35 if epoch == 1 else 1e-3
        )
        for _ in range(3):
            optimizer.zero_grad()
            own = part.loss()
            pulls.append(None if own is None else own.item())
            (loss(network, [images, torch.arange(4)]) + (0 if own is None else own)).backward()
            optimizer.step()
        weights = {key: part.weight(key, part.sources[key].weight()).detach() for key in part.sources}
        if held is not None:
            assert all(torch.equal(weights[key][mask], value[mask]) for key, (mask, value) in held.items())
        state = part.state()
        if state["books"] is not None:
            masks = {key: (indices >= 0).reshape(weights[key].shape) for key, (_, indices) in state["codes"].items()}
            held = {key: (mask, weights[key]) for key, mask in masks.items()}
    assert pulls[0] is None and pulls[-1] is None and pulls[5] is not None and pulls[3] is not None
    assert pulls[5] < pulls[3]
    assert len(torch.cat([w.flatten() for w in weights.values()]).unique()) < 40


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ecsq", {"quantizer": "lloyds"}, r"recipes\.0\.quantizer"),
        ("ecsq", {"step": 0.0}, r"recipes\.0\.step"),
        ("universal", {"seed": -1}, r"recipes\.0\.seed"),
        ("universal", {"coder": "lzam"}, "did you mean 'lzma'"),
        ("soft_to_hard", {"entries": 1}, r"recipes\.0\.entries"),
        ("weight_fixing", {"fractions": [0.5, 0.4]}, "expected rising shares"),
        ("weight_fixing", {"distance": 0.7}, r"recipes\.0\.distance"),
    ],
)
def test_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IlwpConfig.from_dict({"recipes": [{"name": name, **options}]})


@pytest.mark.parametrize("options", [{"sensitivity": "layer"}, {"step_allocation": "measured"}])
def test_what_needs_calibration(network: nn.Module, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="calibration inputs"):
        compress(network, config("ecsq", **options))
