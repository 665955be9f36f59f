"""A recipe, a section, a coder, a step rule and a prediction mode that live in the tests alone: they work everywhere.

Everything is in `third_party.py`, which nothing in the package knows: importing it is all that is done.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.errors import ConfigError, FormatError
from ilwp_plugin.format import SECTIONS
from ilwp_plugin.format.coding import CODERS
from ilwp_plugin.method.prediction import PREDICTORS
from ilwp_plugin.method.quantization import STEP_RULES
from ilwp_plugin.recipes import RECIPES
from ilwp_plugin.training import FakeQuantizer, FineTuning, fine_tune
from ilwp_plugin.zoo import scope_layers

ROOT = Path(__file__).parent.parent.parent
NAME = "tests.recipes.third_party"
REGISTRIES: list[Any] = [RECIPES, SECTIONS, CODERS, STEP_RULES, PREDICTORS]

SIGNS: dict[str, Any] = {
    "recipes": [{"name": "ilwp", "loss_weight": 0.0}, {"name": "signs", "gain": 1.5, "ignored_scopes": ["classifier"]}]
}


@pytest.fixture(autouse=True)
def third_party(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME)


def check_signs(state: dict[str, Tensor], restored: dict[str, Tensor], gain: float) -> None:
    for name, weight in state.items():
        if weight.dim() > 1 and "classifier" not in name and weight.shape[1:] != (1, 3, 3):
            magnitude = weight.abs().mean() * gain
            torch.testing.assert_close(restored[name], torch.where(weight < 0, -magnitude, magnitude))


def test_files(mobilenet: nn.Module, tmp_path: Path) -> None:
    state = mobilenet.state_dict()
    compressed = compress(mobilenet, SIGNS)
    ledger = compressed.save(tmp_path / "x.ilwp")
    stored = load(tmp_path / "x.ilwp")
    restored = stored.state_dict()
    check_signs(state, restored, 1.5)
    assert torch.equal(restored["classifier.weight"], state["classifier.weight"])
    assert compressed.left["classifier"] == "named by `ignored_scopes`"
    kinds = {layer.name: layer.kind for layer in stored.layers}
    assert kinds["features.0.weight"] == "signs" and kinds["features.4.0.weight"] == "chain"
    weights = sum(state[name].numel() for name, kind in kinds.items() if kind == "signs")
    sizes = sum(ledger.layers[name].file_bytes for name, kind in kinds.items() if kind == "signs")
    assert weights / 8 < sizes < weights / 8 + 30 * len(kinds)
    with pytest.raises(ConfigError, match=r"recipes\.0\.gain: .*greater than 0, got -1"):
        compress(mobilenet, {"recipes": [{"name": "signs", "gain": -1.0}]})
    del SECTIONS._items["signs"]
    with pytest.raises(FormatError, match="unknown kind 70"):
        load(tmp_path / "x.ilwp")


def test_coder_step_rule_and_mode(mobilenet: nn.Module) -> None:
    """Each chosen by its name, as those of the package are."""
    plain = IlwpConfig.paper(bits=4)
    for field, name in (("coder", "wide"), ("range", "halved"), ("mode", "mirrored")):
        config = plain.replace(**{field: name})
        compressed = compress(mobilenet, config)
        again = compress(compressed.state_dict(), plain)
        assert compressed.to_bytes() != compress(mobilenet, plain).to_bytes()
        assert len(again.chains) == 1
        with pytest.raises(ConfigError, match=f"{field}: '{name}x' is no .*did you mean '{name}'"):
            plain.replace(**{field: f"{name}x"})
    weights = {name: layer.weight for name, layer in scope_layers(mobilenet).items()}
    halved = compress(mobilenet, plain.replace(range="halved", mode="none"))
    for layer in halved.layers:
        if "step" in layer.details:
            largest = float(weights[layer.name.removesuffix(".weight")].detach().abs().max())
            assert layer.details["step"] == pytest.approx(largest / 14)
    wide = compress(mobilenet, plain.replace(coder="wide"))
    predicted = sum(weight.numel() for weight in list(weights.values())[1:])
    assert wide.ledger.texture_bytes == 2 * predicted
    assert compress(mobilenet, plain).ledger.texture_bytes < predicted, "nobody gets the coder without asking for it"


def test_training(mobilenet: nn.Module, images: Tensor, tmp_path: Path) -> None:
    quantizer = FakeQuantizer(mobilenet, SIGNS)
    assert len(mobilenet.get_submodule("features.3.3").weight.unique()) == 2
    mobilenet.eval()
    seen = mobilenet(images).detach()
    quantizer.remove()
    file = quantizer.compressed()
    file.apply_to(mobilenet)
    torch.testing.assert_close(mobilenet(images), seen)
    data = TensorDataset(images.repeat(4, 1, 1, 1), torch.arange(4).repeat(4))
    before = {name: tensor.clone() for name, tensor in mobilenet.state_dict().items()}
    result = fine_tune(
        mobilenet,
        data,
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        SIGNS,
        FineTuning(epochs=2, batch=4, lr=0.01, norm_batches=0),
        out=tmp_path / "x.ilwp",
    )
    restored = load(tmp_path / "x.ilwp").state_dict()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in mobilenet.state_dict().items())
    assert len(restored["features.3.3.weight"].unique()) == 2
    assert not torch.equal(restored["features.3.3.weight"].sign(), before["features.3.3.weight"].sign())
    assert {layer.kind for layer in result.compressed.layers} >= {"chain", "signs"}


@pytest.fixture
def announced(tmp_path: Path) -> dict[str, str]:
    """An environment in which a package announces the module as a plugin."""
    package = tmp_path / "site" / "third_party-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[ilwp.plugins]\nthird = {NAME}\nbroken = no_such_module\n")
    paths = [str(ROOT), str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}


def ilwp(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "ilwp", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def test_command_line(announced: dict[str, str], mobilenet: nn.Module, tmp_path: Path) -> None:
    torch.save(mobilenet.state_dict(), tmp_path / "m.pt")
    out = tmp_path / "x.ilwp"
    done = ilwp(announced, "compress", tmp_path / "m.pt", "-o", out, "--recipe", "signs", "--set", "gain=1.5")
    assert "(signs 5" in done.stdout
    assert "plugin 'broken' (no_such_module) cannot be imported" in done.stderr
    check_signs(mobilenet.state_dict(), load(out).state_dict(), 1.5)
    assert "magnitude" in ilwp(announced, "inspect", out).stdout
    assert "good" in ilwp(announced, "verify", out).stdout
    wide = ["--coder", "wide", "--range", "halved", "--mode", "mirrored"]
    ilwp(announced, "compress", tmp_path / "m.pt", "-o", out, *wide)
    assert load(out).chains[0].layers


def test_comparison(announced: dict[str, str], tmp_path: Path) -> None:
    grid = {
        "networks": [{"epochs": 1, "width": 0.25}],
        "methods": [
            {"method": "fp32"},
            {"method": "ilwp", "options": {"recipes": [{"name": "signs", "gain": 1.0}]}},
            {"method": "ilwp", "options": {"mode": "mirrored", "range": "halved", "coder": "wide", "bits": 6}},
            {"method": "fine_tune", "options": {"recipes": [{"name": "signs"}], "epochs": 1}},
        ],
    }
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    ilwp(announced, "compare", tmp_path / "grid.json", "-o", tmp_path / "out", "--workers", 1)
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    sizes = {line["title"]: line["sizes"]["file_bytes"] for line in lines if line.get("method")}
    assert len(sizes) == 4
    whole = sizes.pop("fp32")
    assert {size < whole / 8 for title, size in sizes.items() if "signs" in title} == {True}
