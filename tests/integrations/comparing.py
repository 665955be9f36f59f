"""A small network, trained on digits, for the methods of all toolkits; and what holds for each of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, Ledger
from ilwp_plugin.compare.methods import Case, Compressed, find_method
from ilwp_plugin.demo import preset
from ilwp_plugin.zoo import Dataset, Recipe, accuracy, load_data, scope_layers, train


class Network(nn.Module):
    """A MobileNet with three blocks: exports of whole ones take many seconds."""

    def __init__(self) -> None:
        super().__init__()

        def conv(c_in: int, c_out: int, size: int, groups: int = 1, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
            return [layer, nn.BatchNorm2d(c_out), nn.ReLU()]

        blocks = [m for stride in (1, 2, 1) for m in (*conv(32, 32, 3, 32, stride), *conv(32, 32, 1))]
        self.features = nn.Sequential(*conv(1, 32, 3, stride=2), *blocks)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class SmallCase(Case):
    """A case of that network."""

    def fresh(self) -> nn.Module:
        torch.manual_seed(self.settings.seed)
        return Network().eval()


@functools.cache
def _trained() -> tuple[Dataset, Mapping[str, Tensor]]:
    data = load_data("digits")
    torch.manual_seed(0)
    model = Network()
    train(model, data, Recipe(epochs=8, batch=64), IlwpConfig(loss_weight=1.0))
    assert accuracy(model, data) > 90
    return data, model.state_dict()


def small_case(folder: Path, noise: float = 0.0) -> Case:
    """The network, with noise on its weights to get another one."""
    data, state = _trained()
    folder.mkdir(exist_ok=True)
    draw = torch.Generator().manual_seed(1)
    noisy = {n: t + noise * torch.randn(t.shape, generator=draw) if t.dim() > 1 else t for n, t in state.items()}
    return SmallCase(replace(preset("digits"), epochs=8), data, noisy, folder)


@dataclass(frozen=True)
class Outcome:
    """What a method made: the file is written, and a model restored from it."""

    compressed: Compressed
    ledger: Ledger
    restored: nn.Module
    outputs: Tensor
    percent: float
    depthwise_bytes: int


def run(case: Case, name: str, **options: Any) -> Outcome:
    """Run a method as a comparison does, and see that the file on disk is what its ledger says."""
    method = find_method(name)
    chosen = method.options.from_dict(options)
    assert method.options.from_dict(chosen.changes) == chosen
    assert method.title(chosen)
    compressed = method.compress(case, chosen)
    path = case.folder / "model"
    ledger = compressed.save(path)
    assert ledger is not None
    assert ledger.file_bytes == path.stat().st_size
    names = [f"{layer}.weight" for layer in scope_layers(case.fresh())]
    assert len(names) == 3
    depthwise = sum(ledger.layers[name].file_bytes for name in names)
    assert 0 < compressed.raw_depthwise_bytes < compressed.raw_bytes
    restored = compressed.restore(path)
    outputs = outputs_of(restored, case)
    right = (outputs.argmax(1) == case.data.test_labels).double().mean()
    return Outcome(compressed, ledger, restored, outputs, 100 * float(right), depthwise)


def check_that_all_comes_from_the_file(folder: Path, name: str, **options: Any) -> None:
    """What one network's method restores from another network's file is the other network."""
    one, other = (run(small_case(folder / str(noise), noise), name, **options) for noise in (0.0, 0.02))
    assert not torch.equal(one.outputs, other.outputs)
    case = small_case(folder)
    assert torch.equal(outputs_of(one.compressed.restore(folder / "0.02" / "model"), case), other.outputs)


@torch.no_grad()
def outputs_of(model: nn.Module, case: Case) -> Tensor:
    found: Tensor = model(case.data.test_images)
    return found
