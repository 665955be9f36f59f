"""Recipes with codebooks: what each is about, and what all of them promise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.method.kmeans import distinct_start, kmeans
from ilwp_plugin.recipes.slq import Slq, SlqOptions
from ilwp_plugin.training import FakeQuantizer
from tests.recipes.training import check_training

RECIPES: dict[str, dict[str, Any]] = {
    "deep_compression": {"conv_bits": 4, "linear_bits": 3, "cluster_epoch": 1},
    "slq": {"clusters": 5, "fixed": [1, 3, 5]},
    "mlq": {"rounds": 3},
    "soft_weight_sharing": {"assign_epoch": 2},
}

pytestmark = pytest.mark.filterwarnings("ignore:.*becomes 0 as a whole")


def config(name: str, **options: Any) -> dict[str, Any]:
    return {"recipes": [{"name": name, **RECIPES[name], **options}]}


def most_values(name: str, key: str) -> int:
    """Of a weight."""
    return {
        "deep_compression": 9 if key.startswith("classifier") else 17,
        "slq": 5,
        "mlq": 3,
        "soft_weight_sharing": 16,
    }[name]


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def data(images: Tensor) -> TensorDataset:
    return TensorDataset(images.repeat(4, 1, 1, 1), torch.arange(4).repeat(4))


@pytest.mark.parametrize("name", RECIPES)
def test_without_training(mobilenet: nn.Module, tmp_path: Path, name: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(config(name)))
    ledger = compress(mobilenet, IlwpConfig.from_file(tmp_path / "x.json")).save(tmp_path / "x.ilwp")
    stored = load(tmp_path / "x.ilwp")
    for key, value in stored.state_dict().items():
        if value.dim() > 1:
            assert len(value.unique()) <= most_values(name, key), key
    assert ledger.codebook_bytes and ledger.indices_bytes
    assert ledger.codebook_bytes + ledger.indices_bytes < 4 * 217_000 / 8


@pytest.mark.parametrize("name", RECIPES)
def test_training_ends_with_what_it_has_computed_with(
    mobilenet: nn.Module, data: TensorDataset, images: Tensor, tmp_path: Path, name: str
) -> None:
    """And with the same bits when it was interrupted, between epochs and within one."""
    stored = check_training(mobilenet, data, loss, config(name), tmp_path)
    assert all(len(w.unique()) <= most_values(name, key) for key, w in stored.items() if w.dim() > 1)


@pytest.mark.parametrize("name", RECIPES)
def test_zeros_of_pruning_stay(mobilenet: nn.Module, images: Tensor, name: str) -> None:
    layer = mobilenet.get_submodule("features.9.3")
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        layer.weight.masked_fill_(mask, 0)
    quantizer = FakeQuantizer(mobilenet, config(name))
    optimizer = torch.optim.SGD([*mobilenet.parameters(), *quantizer.parts.parameters()], 0.01)
    for epoch in range(3):
        quantizer.parts.begin_epoch(epoch)
        (loss(mobilenet, [images, torch.arange(4)]) + quantizer.parts.loss()).backward()
        assert all(parameter.grad is not None for parameter in mobilenet.parameters()), "DDP waits for each"
        optimizer.step()
        quantizer.parts.after_step()
    quantizer.parts.finish()
    assert not layer.weight[mask].any() and len(layer.weight.unique()) <= most_values(name, "features")
    numbers = quantizer.parts.statistics()
    assert {f"{name}: distinct values", f"{name}: entropy in bits", f"{name}: zeros"} <= set(numbers)
    quantizer.remove()
    assert not quantizer.compressed().state_dict()["features.9.3.weight"][mask].any()


def test_deep_compression_prunes_and_shares(mobilenet: nn.Module) -> None:
    options = {"sparsity": 0.8, "linear_bits": 2, "conv_bits": 3, "start": "density"}
    restored = compress(mobilenet, config("deep_compression", **options)).state_dict()
    state = mobilenet.state_dict()
    weights = {key: (state[key], value) for key, value in restored.items() if value.dim() > 1}
    zeros = sum(int((value == 0).sum()) for _, value in weights.values())
    assert zeros == round(0.8 * sum(value.numel() for _, value in weights.values()))
    for key, (weight, value) in weights.items():
        kept = value != 0
        if not bool(kept.any()):
            continue
        assert float(weight[kept].abs().min()) >= float(weight[~kept].abs().max())
        centres = kmeans(weight[kept], distinct_start(weight[kept], 4 if weight.dim() == 2 else 8, "density"))
        nearest = centres[(weight[kept].double()[:, None] - centres).abs().argmin(dim=1)]
        torch.testing.assert_close(value[kept], nearest.float(), msg=key)


def test_deep_compression_trains_shared_values(mobilenet: nn.Module, images: Tensor) -> None:
    """Pruned weights stay 0; codes stay; a shared value moves by the sum of the gradients of its weights."""
    quantizer = FakeQuantizer(mobilenet, config("deep_compression", sparsity=0.5, prune_epochs=1, cluster_epoch=1))
    layer = mobilenet.get_submodule("classifier")
    quantizer.parts.begin_epoch(0)
    pruned = layer.weight == 0
    assert bool(pruned.any()) and len(layer.weight.unique()) > 100
    quantizer.parts.begin_epoch(1)
    assert torch.equal(layer.weight == 0, pruned)
    before, codes = layer.weight.detach().clone(), layer.weight.unique(return_inverse=True)[1]
    optimizer = torch.optim.SGD(mobilenet.parameters(), 0.01)
    used = layer.weight
    used.retain_grad()
    x = torch.randn(4, used.shape[1])
    (F.linear(x, used).square().sum()).backward()
    expected = torch.zeros(9).index_add_(0, codes.flatten(), used.grad.flatten())[codes]
    optimizer.step()
    moved = layer.weight.detach() - before
    torch.testing.assert_close(moved[~pruned], -0.01 * expected[~pruned], rtol=1e-3, atol=1e-5)
    assert not moved[pruned].any()


@pytest.mark.parametrize("order", ["loss", "magnitude"])
def test_slq_against_a_slow_version(order: str) -> None:
    recipe = Slq(SlqOptions(clusters=5, fixed=(2, 4, 5), order=order))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, generator=generator).double() * 0.3
    centres = [0.0, 0.5, -0.5, 0.25, -0.25] if float(weight.abs().max()) < 1 else [0.0, 1.0, -1.0, 0.5, -0.5]
    done: set[int] = set()
    held = dict[int, int]()
    books, fixed = None, list[Tensor]()
    for count in (2, 4, 5):
        free = [i for i in range(300) if i not in held]
        for _ in range(200):
            near = {i: min(range(5), key=lambda c, i=i: abs(float(weight[i]) - centres[c])) for i in free}
            for c in range(1, 5):
                own = [float(weight[i]) for i in free if near[i] == c]
                if own and c not in done:
                    centres[c] = sum(own) / len(own)
        error = {
            c: sum((float(weight[i]) - centres[c]) ** 2 for i in free if near[i] == c)
            if order == "loss"
            else (-1e9 if c == 0 else -abs(centres[c]))
            for c in range(5)
        }
        done |= set(sorted(set(range(5)) - done, key=lambda c: error[c])[: count - len(done)])
        held.update({i: near[i] for i in free if near[i] in done})
        books, fixed = recipe.clustered({"w": weight.float()}, [["w"]], books, fixed, count)
        indices = books.codes["w"].indices
        assert {i: int(c) for i, c in enumerate(indices) if c >= 0} == held
        assert set(torch.nonzero(fixed[0]).flatten().tolist()) == done
        torch.testing.assert_close(books.books[0].flatten(), torch.tensor(centres), atol=1e-5, rtol=1e-5)
        weight = torch.tensor(
            [centres[held[i]] if i in held else float(w) * 1.1 for i, w in enumerate(weight)]
        ).double()
    assert len(held) == 300


def test_mlq_quantizes_layers_in_order(mobilenet: nn.Module) -> None:
    quantizer = FakeQuantizer(mobilenet, config("mlq", rounds=4))
    layers = [mobilenet.get_submodule(name) for name in quantizer.names]
    assert len(layers) == 28
    first = None
    for epoch, count in enumerate((7, 14, 21, 28)):
        quantizer.parts.begin_epoch(epoch)
        ternary = [len(layer.weight.unique()) <= 3 for layer in layers]
        assert ternary == [i < count for i in range(28)]
        if first is not None:
            assert torch.equal(first, layers[0].weight), "what is quantized stays"
        first = layers[0].weight.detach().clone()
        with torch.no_grad():  # as training moves it
            for layer in layers:
                layer.parametrizations.weight.original.mul_(1.01)


def test_soft_weight_sharing_gathers_weights(mobilenet: nn.Module) -> None:
    """The prior alone draws weights to 0 and to the other means, which are learned."""
    quantizer = FakeQuantizer(mobilenet, config("soft_weight_sharing", tau=300.0, lr_means=1e-3))
    quantizer.parts.begin_epoch(0)
    optimizer = torch.optim.Adam(quantizer.raw_weights().values(), 5e-3)

    def distance() -> float:
        restored = quantizer.parts.reconstructed()
        gaps = [quantizer.parts.sources[key].weight() - value for key, value in restored.items()]
        return float(torch.cat([gap.detach().flatten() for gap in gaps]).square().mean())

    start = distance()
    values = []
    for _ in range(25):
        optimizer.zero_grad()
        value = quantizer.parts.loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        quantizer.parts.after_step()
        values.append(value.item())
    assert values[-1] < values[0] and distance() < start / 2
    numbers = quantizer.parts.statistics()
    assert numbers["soft_weight_sharing: distinct values"] <= 16


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deep_compression", {"start": "linaer"}, "did you mean 'linear'"),
        ("deep_compression", {"sparsity": 1.0}, r"recipes\.0\.sparsity"),
        ("deep_compression", {"prune_epochs": 4, "cluster_epoch": 1}, "begins before pruning ends"),
        ("slq", {"clusters": 5, "fixed": [3, 2, 5]}, "expected rising numbers"),
        ("slq", {"clusters": 5, "fixed": [3, 4]}, "expected rising numbers"),
        ("soft_weight_sharing", {"codebook": "layer"}, "codebook"),
    ],
)
def test_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IlwpConfig.from_dict({"recipes": [{"name": name, **options}]})


def test_configurations_of_the_page() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = [json.loads(block.split("```")[0]) for block in page.split("```json\n")[1:]]
    found = [IlwpConfig.from_dict(block).recipe_list()[0].name for block in blocks if "recipes" in block]
    assert set(found) >= set(RECIPES)
