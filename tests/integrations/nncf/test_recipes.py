"""Any recipe is an algorithm of NNCF's JSON, by its registration alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jsonschema
import pytest
import torch
from ilwp_integrations.nncf import NNCFConfig, schema
from pydantic import Field
from torch import Tensor, nn

from ilwp_plugin import load
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.format.sections import GridSection
from ilwp_plugin.models.tensors import integers_of
from ilwp_plugin.recipes import RECIPES
from ilwp_plugin.recipes.base import Options, WeightRecipe
from tests.integrations.nncf.helpers import (
    ILWP,
    INT8,
    MAGNITUDE,
    compressed,
    images,
    network,
    optimizer_of,
    session_of,
    train,
)

GRID = {"algorithm": "grid", "weight_step": 0.05}


class LevelOptions(Options):
    levels: Annotated[int, Field(strict=True, ge=1, le=100)] = Field(default=3, description="Of each sign.")


class Levels(WeightRecipe):
    """Every weight is one of a few levels."""

    name: ClassVar[str] = "levels"
    options_type: ClassVar[type[Options]] = LevelOptions

    def quantize(self, key: str, weight: Tensor, step: float | None, feedback: Any) -> tuple[Any, Tensor]:
        scale = weight.abs().max() / self.options.levels
        codes = torch.round(weight / scale)
        return integers_of(codes.to(torch.int16), scale), codes.float() * scale.float()

    def sections(self, entries: Sequence[Any]) -> Sequence[Any]:
        infos, values = zip(*entries, strict=True)
        return [GridSection(tuple(infos), tuple(values), self.options.coder)]


@pytest.fixture
def levels() -> Iterator[None]:
    RECIPES.register("levels")(Levels)
    yield
    del RECIPES._items["levels"]


SECTIONS = {
    "alone": {"algorithm": "levels", "levels": 7},
    "named": {"algorithm": "ilwp", "recipes": [{"name": "levels", "levels": 7}]},
}


@pytest.mark.parametrize("others", [[], [MAGNITUDE], [INT8]], ids=["alone", "magnitude", "int8"])
@pytest.mark.parametrize("form", SECTIONS)
def test_a_recipe_of_somebody_else(levels: None, form: str, others: list[Any], tmp_path: Path) -> None:
    controller, model = compressed([SECTIONS[form], *others])
    train(controller, model, optimizer_of(model), [0, 1])
    assert all(len(weight.unique()) <= 15 for weight in session_of(controller).parts.reconstructed().values())
    trained = model(images()).detach()
    stripped = controller.strip().eval()
    out = stripped(images()).detach()
    if INT8 not in others:
        torch.testing.assert_close(out, trained, rtol=0, atol=0)
    controller.save_ilwp(tmp_path / "model.ilwp")
    for parameter in stripped.parameters():
        torch.nn.init.zeros_(parameter)
    load(tmp_path / "model.ilwp").apply_to(stripped)
    torch.testing.assert_close(stripped(images()), out, rtol=0, atol=0)
    assert controller.statistics().ilwp.ledger.file_bytes == (tmp_path / "model.ilwp").stat().st_size


def test_its_options_are_in_the_schema_and_checked(levels: None) -> None:
    whole = {"input_info": {"sample_size": [1, 1, 16, 16]}, "compression": SECTIONS["alone"]}
    NNCFConfig.from_dict(whole)
    jsonschema.validate(whole, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**whole, "compression": {"algorithm": "levels", "levels": 0}}, schema())
    with pytest.raises(ConfigError, match="section 'levels' of the NNCF config: .*'level'.*did you mean 'levels'"):
        NNCFConfig.from_dict({**whole, "compression": {"algorithm": "levels", "level": 4}})


def test_a_recipe_of_our_own_alone_and_after_another() -> None:
    controller, model = compressed([{**GRID, "step_allocation": "equal"}])
    train(controller, model, optimizer_of(model), [0], steps=1)
    stripped = controller.strip()
    weights = {k: v for k, v in stripped.state_dict().items() if k in network().state_dict() and v.dim() > 1}
    for key, weight in weights.items():
        torch.testing.assert_close(weight, torch.round(weight / 0.05) * 0.05, rtol=0, atol=1e-6, msg=key)
    recipes = [{"name": "ilwp", "bits": 4, "loss_weight": 3.0}, {"name": "grid", "weight_step": 0.05}]
    both, _ = compressed([{"algorithm": "ilwp", "recipes": recipes}])
    chains, _ = compressed([ILWP])
    assert 0 < len(session_of(chains).parts.keys) < len(session_of(both).parts.keys)
    assert both.loss().item() == chains.loss().item() > 0
    assert both.estimate_ilwp().file_bytes < 0.3 * chains.estimate_ilwp().file_bytes


@pytest.mark.parametrize("scopes", ["whole", "section"])
def test_scopes_count_in_every_recipe(scopes: str) -> None:
    ignored = {"ignored_scopes": ["classifier"]}
    section = {"algorithm": "ilwp", "recipes": [{"name": "grid", **(ignored if scopes == "section" else {})}]}
    controller, _ = compressed([section], **(ignored if scopes == "whole" else {}))
    keys = session_of(controller).parts.keys
    assert "classifier.weight" not in keys and len(keys) > 10


CODEBOOKS: list[dict[str, Any]] = [
    {"algorithm": "deep_compression", "cluster_epoch": 1, "codebook": "kind"},
    {"algorithm": "slq", "clusters": 5},
    {"algorithm": "mlq", "rounds": 2},
    {"algorithm": "soft_weight_sharing", "assign_epoch": 1},
    {"algorithm": "ecsq", "step": 0.1},
    {"algorithm": "soft_to_hard", "entries": 8},
    {"algorithm": "weight_fixing", "distance": 0.2},
]


@pytest.mark.parametrize("section", CODEBOOKS, ids=lambda section: section["algorithm"])
def test_recipes_with_codebooks(section: dict[str, Any], tmp_path: Path) -> None:
    """They train under NNCF, say what they came to, resume, and the file restores what the model computes with."""
    controller, model = compressed([section])
    optimizer = optimizer_of(model)
    train(controller, model, optimizer, steps=1)
    state = controller.get_compression_state()
    numbers = controller.statistics().ilwp.numbers
    name = section["algorithm"]
    assert 0 <= numbers[f"{name}: entropy in bits"] < 8 and numbers[f"{name}: distinct values"] >= 1
    assert f"{name}: zeros" in controller.statistics().to_str()
    again, other = compressed([section], state=state)
    other.load_state_dict(model.state_dict())
    assert again.statistics().ilwp.numbers == numbers
    stripped = controller.strip()
    controller.save_ilwp(tmp_path / "x.ilwp")
    restored = load(tmp_path / "x.ilwp").state_dict()
    assert all(torch.equal(tensor, restored[key]) for key, tensor in stripped.state_dict().items())
    assert len(restored["classifier.weight"].unique()) <= 33


def test_a_layer_with_one_output_is_stored_as_a_vector(tmp_path: Path) -> None:
    class OneOutput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.gate = nn.Conv2d(10, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.net(x)
            return scores * self.gate(scores[:, :, None, None])[:, :, 0, 0]

    controller, model = compressed([{"algorithm": "ilwp", "loss_weight": 0.0}], OneOutput())
    assert "gate.weight" not in session_of(controller).parts.keys
    train(controller, model, optimizer_of(model), [0], steps=1)
    controller.save_ilwp(tmp_path / "model.ilwp")
    stripped = controller.strip().state_dict()
    file = load(tmp_path / "model.ilwp")
    assert all(torch.equal(stripped[key], value) for key, value in file.state_dict().items())
    assert "gate.weight" in file.quantized
