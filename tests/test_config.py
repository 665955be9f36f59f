import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import ConfigError, FileError


def test_presets() -> None:
    config = IlwpConfig.paper()
    assert (config.mode, config.bits, config.loss_weight, config.scope) == ("collocated", 8, "auto", "depthwise")
    assert (config.anchor, config.range, config.coder) == ("fp32", "max", "auto")
    assert (config.residual_step, config.weight_step, config.batch_norm) == (None, None, "exact")
    small = IlwpConfig()
    assert (small.mode, small.bits, small.anchor, small.batch_norm) == ("auto", 8, "quantized", "auto")
    assert (small.residual_step, small.weight_step) == ("auto", "auto") and small == IlwpConfig.of("small").replace(
        preset=None
    )
    assert IlwpConfig(bits=4).residual_step is None and IlwpConfig(bits=4, residual_step=0.1).residual_step == 0.1
    lossless = IlwpConfig.lossless()
    assert (lossless.bits, lossless.weight_step, lossless.batch_norm) == (None, None, "exact")
    with pytest.raises(ConfigError, match="preset: 'papr' is none; known: .*did you mean 'paper'"):
        IlwpConfig.of("papr")


def test_recipes() -> None:
    config = IlwpConfig.from_dict(
        {"recipes": [{"name": "grid", "weight_step": 0.05, "target_scopes": ["a"]}, {"name": "ilwp", "bits": 4}]}
    )
    grid, ilwp = config.recipe_list()
    assert (grid.name, grid.options.weight_step, grid.options.target_scopes) == ("grid", 0.05, ("a",))
    assert (ilwp.name, ilwp.options.bits, ilwp.options.residual_step) == ("ilwp", 4, None)
    assert config.ilwp() == ilwp.options and IlwpConfig.from_json(json.dumps(config.to_dict())) == config
    linked = IlwpConfig.from_dict({"recipes": [{"name": "ilwp"}, {"name": "grid", "weight_step": 0.05}]})
    assert linked.recipe_list()[0].options.residual_step == pytest.approx(0.04)
    assert IlwpConfig.from_dict({"recipes": [{"name": "grid"}]}).ilwp() is None


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([], "recipes: expected one or more; known: 'batch_norm', .*'grid', .*'ilwp'"),
        ([{"bits": 4}], r"recipes\.0\.name: None is no recipe"),
        ([{"name": "gird"}], r"recipes\.0\.name: 'gird' is no recipe; .*did you mean 'grid'"),
        ([{"name": "grid"}, {"name": "grid"}], r"recipes\.1: 'grid' for the second time"),
        ([{"name": "grid", "bits": 4}], r"unknown key 'recipes\.0\.bits'"),
        ([{"name": "ilwp", "bits": 9}], r"recipes\.0\.bits: .*less than or equal to 8, got 9"),
    ],
)
def test_invalid_recipes_are_refused(recipes: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IlwpConfig.from_dict({"recipes": recipes})
    with pytest.raises(ConfigError, match="have their own options: move bits into one of them"):
        IlwpConfig.from_dict({"recipes": [{"name": "ilwp"}], "bits": 4})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bist": 4}, "unknown key 'bist'.*did you mean 'bits'"),
        ({"bits": 1}, "bits.*greater than or equal to 2, got 1"),
        ({"bits": 9}, "bits.*less than or equal to 8, got 9"),
        ({"bits": True}, "bits.*integer, got True"),
        ({"bits": "8"}, "bits.*integer, got '8'"),
        ({"bits": 8.0}, "bits.*integer, got 8.0"),
        ({"mode": "colocated"}, "mode.*did you mean 'collocated'"),
        ({"mode": 3}, "mode: 3 is no prediction mode"),
        ({"range": "maximum"}, "range.*known: 'max', 'percentile', 'mse'"),
        ({"coder": "hufman"}, "coder.*did you mean 'huffman'"),
        ({"scope": "all"}, "scope.*'depthwise' or 'conv', got 'all'"),
        ({"anchor": "int8"}, "anchor.*'fp32', 'fp16' or 'quantized'"),
        ({"loss_weight": -1}, "loss_weight: expected a finite number >= 0, or 'auto', got -1"),
        ({"loss_weight": float("nan")}, "loss_weight.*got nan"),
        ({"loss_weight": float("inf")}, "loss_weight.*got inf"),
        ({"loss_weight": "automatic"}, "loss_weight.*got 'automatic'"),
        ({"loss_weight": True}, "loss_weight.*got True"),
        ({"layers": "conv1"}, "layers: expected a list of names"),
        ({"layers": ["a", 3]}, r"layers\.1.*string, got 3"),
        ({"ignored_scopes": [""]}, r"ignored_scopes\.0.*at least 1 character"),
        ({"bits": 9, "mode": "collocated", "x": 1}, "bits.*; unknown key 'x'"),
    ],
)
def test_invalid_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IlwpConfig(**fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        IlwpConfig.from_dict(fields)


def test_frozen_and_hashable() -> None:
    config = IlwpConfig(bits=4)
    with pytest.raises(ConfigError, match=r"bits: a configuration is frozen; config.replace\(bits"):
        config.bits = 5  # type: ignore[misc]
    assert {config: 1}[IlwpConfig(bits=4)] == 1


@given(
    st.builds(
        dict,
        mode=st.sampled_from(["none", "full", "local", "collocated"]),
        bits=st.none() | st.integers(2, 8),
        loss_weight=st.just("auto") | st.floats(0, 1e6),
        target_scopes=st.lists(st.text(min_size=1, max_size=5), max_size=3),
        layers=st.none() | st.lists(st.text(min_size=1, max_size=5), max_size=3),
    )
)
def test_json_round_trip_loses_nothing(fields: dict[str, object]) -> None:
    config = IlwpConfig.from_dict(fields)
    assert IlwpConfig.from_json(json.dumps(config.to_dict())) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"bits": 3, "bits": 4}', "duplicate key 'bits'"),
        ('{"loss_weight": NaN}', "NaN is no JSON number"),
        ('{"bits": 3', "not JSON"),
        ("[3]", "expected an object"),
        ("[" * 100000, "nested too deeply"),
    ],
)
def test_invalid_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IlwpConfig.from_json(text)


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "ilwp.json"
    path.write_text('{"bits": 5}')
    assert IlwpConfig.from_file(path) == IlwpConfig(bits=5)
    path.write_text('{"bits": 50}')
    with pytest.raises(ConfigError, match=r"ilwp\.json.*bits.*50"):
        IlwpConfig.from_file(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"ilwp\.json.*not JSON: .utf-8"):
        IlwpConfig.from_file(path)
    with pytest.raises(FileError, match="No such file"):
        IlwpConfig.from_file(tmp_path / "absent.json")


def test_of() -> None:
    assert IlwpConfig.of(None) == IlwpConfig()
    assert IlwpConfig.of({"bits": 4}) == IlwpConfig.of(IlwpConfig(bits=4)) == IlwpConfig(bits=4)
    with pytest.raises(ConfigError, match="expected an object"):
        IlwpConfig.of(4)  # type: ignore[arg-type]


def test_replace_validates() -> None:
    assert IlwpConfig(bits=4).replace(mode="none") == IlwpConfig(bits=4, mode="none")
    with pytest.raises(ConfigError, match="unknown key 'bit'"):
        IlwpConfig().replace(bit=3)


def test_schema_names_every_field_and_registry() -> None:
    schema = IlwpConfig.model_json_schema()
    assert set(schema["properties"]) == set(IlwpConfig.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["mode"]["enum"] == ["auto", "collocated", "full", "local", "none"]
    assert all("description" in field for field in schema["properties"].values())


def test_overrides() -> None:
    config = IlwpConfig(overrides={"a": {"bits": 4}, "{re}.*b": {"mode": "local", "range": "mse"}})
    assert config.for_layer("a").bits == 4
    assert config.for_layer("a.b") == config.replace(mode="local", range="mse"), "of several the last one counts"
    assert config.for_layer("c") == config
    assert IlwpConfig.from_json(json.dumps(config.to_dict())) == config
    for overrides, message in (
        ({"a": {"bits": 9}}, r"overrides\.a\.bits: .*less than or equal to 8, got 9"),
        ({"a": {"bist": 4}}, r"overrides\.a\.bist.*known: 'mode', 'bits', 'range'"),
        ({"a": {"mode": "ful"}}, "did you mean 'full'"),
    ):
        with pytest.raises(ConfigError, match=message):
            IlwpConfig(overrides=overrides)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bits": 8},
        {"preset": "paper"},
        {"preset": "paper", "anchor": "quantized", "mode": "auto", "overrides": {"a": {"bits": 3}}},
        {"preset": "lossless", "coder": "ans"},
        {"recipes": [{"name": "grid", "weight_step": 0.1}]},
    ],
)
def test_what_differs_from_the_preset_restores_a_configuration(fields: dict[str, Any]) -> None:
    config = IlwpConfig.from_dict(fields)
    assert IlwpConfig.from_dict(config.differences()) == config
    assert set(config.differences()) <= {*fields, "residual_step"}
