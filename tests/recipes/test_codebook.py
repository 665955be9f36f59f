"""What recipes with codebooks share, by a recipe that lives in this test alone."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilwp_plugin import compress, load, loads
from ilwp_plugin.errors import TensorError
from ilwp_plugin.method.codebooks import Codebooks
from ilwp_plugin.recipes import RECIPES
from ilwp_plugin.recipes.codebook import (
    CodebookOptions,
    CodebookRecipe,
    CodebookTraining,
    Groups,
    OwnOptimizer,
    whole_book,
)
from ilwp_plugin.training import FakeQuantizer, FineTuning, Progress, fine_tune


class ThirdsOptions(CodebookOptions):
    """Of `Thirds`."""

    width: int = 1


class ThirdsTraining(CodebookTraining):
    """Weights are free in the first epoch; in the second one entries learn."""

    def phase(self, epoch: int) -> None:
        if epoch == 1:
            books = self.final()
            self.hold(books, [book.any(dim=1) for book in books.books])


class Thirds(CodebookRecipe):
    """Each value becomes one of three."""

    name: ClassVar[str] = "thirds"
    options_type: ClassVar[Any] = ThirdsOptions
    options: ThirdsOptions
    training = ThirdsTraining

    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        found = []
        for group in groups:
            largest = max(float(weights[key].abs().max()) for key in group)
            book = torch.tensor([[0.0], [largest / 2], [-largest / 2]]).repeat(1, self.options.width)
            found.append(whole_book(book, {key: weights[key] for key in group}))
        return Codebooks.all(found)


@pytest.fixture(autouse=True)
def thirds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(RECIPES, "_items", dict(RECIPES._items))
    RECIPES.register("thirds")(Thirds)
    yield


def recipes(**options: Any) -> dict[str, Any]:
    return {"recipes": [{"name": "thirds", **options}]}


@pytest.mark.filterwarnings("ignore:.*becomes 0 as a whole")
@pytest.mark.parametrize("sharing", ["layer", "kind", "network"])
@pytest.mark.parametrize("width", [1, 4])
def test_files(mobilenet: nn.Module, tmp_path: Path, sharing: str, width: int) -> None:
    scopes = {} if width == 1 else {"ignored_scopes": ["{re}features.0", "{re}features.*\\.0$"]}
    compressed = compress(mobilenet, recipes(codebook=sharing, width=width, **scopes))
    ledger = compressed.save(tmp_path / "x.ilwp")
    stored = load(tmp_path / "x.ilwp")
    restored = stored.state_dict()
    own = {layer.name: layer.details for layer in stored.layers if layer.kind in ("codebook", "arranged")}
    assert len(own) == (28 if width == 1 else 14)
    values = {name: set(restored[name].unique().tolist()) for name in own}
    assert all(len(found) <= 3 for found in values.values())
    assert len(set().union(*values.values())) <= {"layer": 99, "kind": 7, "network": 3}[sharing]
    for name in own:
        value, largest = mobilenet.state_dict()[name], restored[name].abs().max()
        if width == 1:
            nearest = torch.tensor([0.0, largest, -largest])[
                torch.stack([v - value for v in (0, largest, -largest)]).abs().argmin(dim=0)
            ]
            assert torch.equal(restored[name], nearest)
    assert ledger.codebook_bytes and ledger.indices_bytes
    weights = sum(restored[name].numel() for name in own)
    assert ledger.indices_bytes < 2 * weights / 8 / width + 40 * len(own)
    assert ledger.file_bytes == (tmp_path / "x.ilwp").stat().st_size


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.filterwarnings("ignore:.*becomes 0 as a whole")
@pytest.mark.parametrize("sharing", ["layer", "network"])
def test_training(mobilenet: nn.Module, images: Tensor, tmp_path: Path, sharing: str) -> None:
    """The file restores what the model has computed with; interrupted, training ends with the same bits."""
    data = TensorDataset(images.repeat(4, 1, 1, 1), torch.arange(4).repeat(4))
    before = copy.deepcopy(mobilenet)

    def run(model: nn.Module, epochs: int = 3, **options: Any) -> bytes:
        plan = FineTuning(epochs=epochs, batch=4, lr=0.002, norm_batches=2)
        return fine_tune(model, data, loss, recipes(codebook=sharing), plan, **options).compressed.to_bytes()

    whole = run(mobilenet)
    stored = loads(whole).state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in mobilenet.state_dict().items())
    distinct = torch.cat([w.flatten() for n, w in stored.items() if w.dim() > 1]).unique()
    assert len(distinct) <= (3 if sharing == "network" else 28 * 3)
    kept = compress(before, recipes(codebook=sharing)).state_dict()
    name = "features.5.3.weight"
    assert not torch.equal(stored[name].unique(), kept[name].unique()), "entries learn"

    class Interrupted(Exception):
        pass

    for stop in (2, 6, 11):
        model, path = copy.deepcopy(before), tmp_path / f"{stop}.checkpoint"

        def report(progress: Progress, stop: int = stop) -> None:
            if progress.step == stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            run(model, checkpoint=path, report=report)
        assert run(copy.deepcopy(before), checkpoint=path) == whole


def test_while_it_trains(mobilenet: nn.Module, images: Tensor) -> None:
    quantizer = FakeQuantizer(mobilenet, recipes(codebook="network"))
    (part,) = quantizer.parts.parts
    layer = mobilenet.get_submodule("features.4.0")
    quantizer.parts.begin_epoch(0)
    assert len(layer.weight.unique()) > 3, "free"
    quantizer.parts.begin_epoch(1)
    assert len(layer.weight.unique()) <= 3
    mobilenet(images).sum().backward()
    assert all(parameter.grad is not None for parameter in mobilenet.parameters())
    mobilenet.eval()
    seen = mobilenet(images).detach()
    quantizer.parts.finish()
    assert torch.equal(mobilenet(images), seen)
    numbers = part.statistics()
    assert numbers["thirds: distinct values"] == 3 and 0 < numbers["thirds: entropy in bits"] < 1.585
    quantizer.remove()
    compressed = quantizer.compressed()
    compressed.apply_to(mobilenet)
    assert torch.equal(mobilenet(images), seen)
    zeros = torch.cat([w.flatten() for n, w in compressed.state_dict().items() if w.dim() > 1]) == 0
    assert numbers["thirds: zeros"] == pytest.approx(float(zeros.float().mean()))


def test_beside_ilwp(mobilenet: nn.Module) -> None:
    both = compress(mobilenet, {"recipes": [{"name": "ilwp", "bits": 6}, {"name": "thirds"}, {"name": "batch_norm"}]})
    kinds = {layer.name: layer.kind for layer in both.layers if layer.name.endswith("weight")}
    assert kinds["features.4.0.weight"] == "chain" and kinds["features.4.3.weight"] == "codebook"


def test_bad_weights(mobilenet: nn.Module) -> None:
    with torch.no_grad():
        mobilenet.classifier.weight[0, 0] = float("nan")
    with pytest.raises(TensorError, match=r"'classifier\.weight': 1 of its .* values are NaN"):
        compress(mobilenet, recipes())


def test_own_optimizer_goes_on() -> None:
    def run(steps: range, state: Any = None) -> tuple[Tensor, Any]:
        values = torch.tensor([1.0, 2.0])
        optimizer = OwnOptimizer({"values": (values, 0.1)})
        if state is not None:
            optimizer.load(state)
        for step in steps:
            (values.square().sum() * (step + 1)).backward()
            optimizer.step()
        optimizer.step()  # without gradients nothing moves
        return values.detach().clone(), optimizer.state()

    whole, _ = run(range(6))
    _, state = run(range(3))
    resumed, _ = run(range(3, 6), state)
    assert torch.equal(whole, resumed) and not torch.equal(whole, torch.tensor([1.0, 2.0]))
