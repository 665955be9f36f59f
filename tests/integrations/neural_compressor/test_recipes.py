"""Any recipe of the core under INC, by its registration alone."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ilwp_integrations.neural_compressor import (
    IlwpConfig,
    attached,
    compose,
    config_from_dict,
    config_of,
    load,
    regularizer,
    save,
    schema,
)
from neural_compressor.common.base_config import config_registry
from neural_compressor.torch.quantization import RTNConfig, quantize
from neural_compressor.torch.utils.utility import algos_mapping
from pydantic import Field
from torch import Tensor, nn

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.format.sections import GridSection, Section
from ilwp_plugin.recipes.base import RECIPES, Options, WeightRecipe
from tests.integrations.chained import chained


class SignsOptions(Options):
    size: Annotated[float, Field(strict=True, gt=0)] = 1.0
    kinds: tuple[str, ...] = Field(default=(), description="A field that holds a list.")


class Signs(WeightRecipe):
    """A recipe of nobody: each weight becomes its sign times the mean magnitude of its layer."""

    name: ClassVar[str] = "signs"
    options_type: ClassVar[type[Options]] = SignsOptions

    def quantize(self, key: str, weight: Tensor, step: float | None, feedback: Any) -> tuple[Any, Tensor]:
        scale = self.options.size * float(weight.abs().mean())
        stored = IntegerTensor(weight.sign().numpy().astype(np.int8), np.float32(scale))
        return stored, torch.from_numpy(stored.restore())

    def sections(self, entries: Sequence[tuple[Any, Any]]) -> Sequence[Section]:
        infos, values = zip(*entries, strict=True)
        return [GridSection(infos, values, self.options.coder)]


@pytest.fixture(autouse=True)
def signs() -> Iterator[None]:
    RECIPES.register("signs")(Signs)
    try:
        yield
    finally:
        del RECIPES._items["signs"]  # other tests list what is there
        config_registry.registered_configs["torch"].pop("ilwp_signs", None)
        algos_mapping.pop("ilwp_signs", None)
        config_of.cache_clear()


def ternary(model: nn.Module) -> set[str]:
    state = model.state_dict()
    return {n for n, t in state.items() if n.endswith("weight") and t.dim() > 1 and len(t.abs().unique()) <= 2}


def test_a_third_partys_recipe_has_a_configuration(mobilenet: nn.Module, tmp_path: Path) -> None:
    original = copy.deepcopy(mobilenet)
    config = config_of("signs")(size=0.5, white_list=["features.5", "classifier"])
    quantized = quantize(mobilenet, config)
    assert ternary(quantized) == {"features.5.0.weight", "features.5.3.weight", "classifier.weight"}
    save(quantized, tmp_path)
    restored = load(tmp_path, original)
    assert all(torch.equal(tensor, quantized.state_dict()[n]) for n, tensor in restored.state_dict().items())


def test_it_trains_what_it_saves(mobilenet: nn.Module, images: Tensor) -> None:
    seen = {}

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            (F.cross_entropy(model(images), torch.arange(len(images))) + regularizer(model)()).backward()
            optimizer.step()
        seen["outputs"] = model.eval()(images).detach()

    quantized = quantize(mobilenet, config_of("signs")(), run_fn=train)
    assert len(ternary(quantized)) == 28
    torch.testing.assert_close(quantized.eval()(images), seen["outputs"], rtol=0, atol=0)


def test_it_runs_beside_others(mobilenet: nn.Module) -> None:
    both = quantize(
        copy.deepcopy(mobilenet),
        IlwpConfig(
            recipes=[{"name": "ilwp", "bits": 5}, {"name": "signs", "target_scopes": ["classifier"]}, {"name": "grid"}]
        ),
    )
    assert ternary(both) == {"classifier.weight"} and len(chained(attached(both).compressed)) == 13
    rtn = RTNConfig(use_layer_wise=False)
    composed = quantize(mobilenet, compose(config_of("signs")(white_list=["features"]), rtn))
    assert len(ternary(composed)) == 27 and type(composed.classifier).__name__ == "INCWeightOnlyLinear"


def test_sets_dictionaries_and_schemas(mobilenet: nn.Module) -> None:
    signs = config_of("signs")
    assert config_of("signs") is signs and config_of("ilwp") is IlwpConfig
    assert [c.size for c in signs(size=[0.5, 2.0], kinds=["a", "b"]).expand()] == [0.5, 2.0]
    config = signs(size=0.5, kinds=["a"], white_list=[nn.Linear])
    assert signs.from_dict(config.to_dict()) == config == copy.deepcopy(config)
    assert config_from_dict({"ilwp_signs": {"size": 0.5}}) == signs(size=0.5)
    quantized = quantize(mobilenet, {"ilwp_signs": {"white_list": ["classifier"]}})
    assert ternary(quantized) == {"classifier.weight"}
    assert set(schema("signs")["$defs"]["fields"]["properties"]) == {*SignsOptions.model_fields, "white_list"}


def test_clear_errors(mobilenet: nn.Module) -> None:
    signs = config_of("signs")
    with pytest.raises(ConfigError, match="'sign' is no recipe.*did you mean 'signs'"):
        config_of("sign")
    with pytest.raises(ConfigError, match="unknown key 'recipes.0.sise'.*did you mean 'size'"):
        signs(sise=1.0)
    with pytest.raises(ConfigError, match="size.*greater than 0"):
        signs(size=[1.0, -1.0])
    with pytest.raises(ConfigError, match="changes 'size' to 2.0.*local are none"):
        quantize(mobilenet, signs().set_local("classifier", signs(size=2.0)))
    with pytest.raises(ConfigError, match="expected an SignsConfig, got IlwpConfig"):
        signs().set_local("classifier", IlwpConfig())
    with pytest.raises(ConfigError, match=r"\['ilwp_signs', 'ilwp'\] are all of ilwp; IlwpConfig\(recipes="):
        compose(signs(), IlwpConfig())


@pytest.mark.parametrize(
    "recipe",
    ["deep_compression", "slq", "mlq", "soft_weight_sharing", "ecsq", "universal", "soft_to_hard", "weight_fixing"],
)
def test_recipes_with_codebooks(mobilenet: nn.Module, images: Tensor, tmp_path: Path, recipe: str) -> None:
    original = copy.deepcopy(mobilenet)

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        (F.cross_entropy(model(images), torch.arange(len(images))) + regularizer(model)()).backward()
        optimizer.step()

    try:
        quantized = quantize(mobilenet, config_of(recipe)(), run_fn=train)
        save(quantized, tmp_path)
        restored = load(tmp_path, original)
        assert all(torch.equal(tensor, quantized.state_dict()[n]) for n, tensor in restored.state_dict().items())
        few = recipe not in ("ecsq", "universal")  # as many as their steps make
        assert not few or len(restored.state_dict()["classifier.weight"].unique()) <= 33
        file = attached(quantized).compressed
        kinds = {layer.kind for layer in file.layers if layer.name in ("classifier.weight", "features.5.3.weight")}
        assert kinds <= ({"dithered"} if recipe == "universal" else {"codebook", "arranged"})
    finally:
        config_registry.registered_configs["torch"].pop(f"ilwp_{recipe}", None)
        algos_mapping.pop(f"ilwp_{recipe}", None)
