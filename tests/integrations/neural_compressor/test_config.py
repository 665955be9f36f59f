"""INC's own cases for configurations (white list, dictionaries, sums, mapping, set_local, expansion), for ours."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ilwp_integrations.neural_compressor import IlwpConfig
from neural_compressor.common.base_config import config_registry
from torch import nn

from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin.errors import ConfigError, FileError

INFO = [(f"features.{i}.{j}", "Conv2d") for i in range(3, 12) for j in (0, 3)]


def bits(config: IlwpConfig) -> dict[str, Any]:
    return {name: local.bits for (name, _), local in config.to_config_mapping(model_info=INFO).items()}


def test_fields_are_those_of_the_core() -> None:
    assert set(IlwpConfig().get_params_dict()) == set(CoreConfig.model_fields) - {"overrides"}
    assert IlwpConfig().core() == CoreConfig()
    assert IlwpConfig(bits=3, mode="local", target_scopes=["a"]).core() == CoreConfig(
        bits=3, mode="local", target_scopes=("a",)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bist": 4}, "unknown key 'bist'.*did you mean 'bits'"),
        ({"bits": 9}, "bits: .*less than or equal to 8, got 9"),
        ({"bits": [4, 9]}, "bits: .*got 9"),
        ({"bits": []}, "bits: an empty set"),
        ({"bits": [4, 6, 4]}, "bits: the set .* holds 4 twice"),
        ({"mode": ["local", "colocated"]}, "did you mean 'collocated'"),
        ({"target_scopes": "features"}, "expected a list of names"),
        ({"white_list": []}, "white_list: expected"),
        ({"white_list": "features"}, "white_list: expected"),
        ({"white_list": [3]}, "expected the name or the type of a module, got 3"),
        ({"white_list": ["features.("]}, "is not a regular expression"),
        ({"overrides": {}}, "set_local"),
    ],
)
def test_invalid_values_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IlwpConfig(**fields)


def test_set_later_is_checked_and_reaches_the_mapping() -> None:
    config = IlwpConfig()
    config.bits = 3
    assert set(bits(config).values()) == {3}
    with pytest.raises(ConfigError, match="bits"):
        config.bits = 1
    with pytest.raises(ConfigError, match="did you mean 'bits'"):
        config.bist = 4
    config.white_list = ["features.3"]
    assert set(bits(config)) == {"features.3.0", "features.3.3"}


def test_white_list() -> None:
    assert IlwpConfig(white_list=["features.3"]).global_config is None
    assert set(bits(IlwpConfig(bits=4, white_list=[r"features\.4\.", "features.11.0"]))) == {
        "features.4.0",
        "features.4.3",
        "features.11.0",
    }
    assert set(bits(IlwpConfig(white_list=[nn.Conv2d]))) == {name for name, _ in INFO}
    assert bits(IlwpConfig(white_list=None)) == {}
    with pytest.raises(ConfigError, match="'feature.3' matches no layer.*did you mean 'features"):
        bits(IlwpConfig(white_list=["feature.3"]))
    with pytest.raises(ConfigError, match=r"'\{type\}Linear' matches no layer; known: 'Conv2d'"):
        bits(IlwpConfig(white_list=[nn.Linear]))


def test_set_local_by_name_regex_list_and_type() -> None:
    config = IlwpConfig(bits=6)
    config.set_local(nn.Conv2d, IlwpConfig(bits=5)).set_local(r"features\.[45]\.0", IlwpConfig(bits=4))
    config.set_local(["features.7.0", "features.8.0"], IlwpConfig(bits=3, mode="local"))
    found = bits(config)
    assert found["features.3.0"] == 5, "by type"
    assert found["features.4.0"] == found["features.5.0"] == 4, "a name counts more than a type"
    assert found["features.7.0"] == found["features.8.0"] == 3
    mapping = config.to_config_mapping(model_info=INFO)
    assert mapping["features.7.0", "Conv2d"].mode == "local"


def test_local_configurations_take_over_the_rest() -> None:
    config = IlwpConfig(anchor="fp16", loss_weight=2.0).set_local("features.4.0", IlwpConfig(bits=4))
    local = config.to_config_mapping(model_info=INFO)["features.4.0", "Conv2d"]
    assert (local.bits, local.anchor, local.loss_weight) == (4, "fp16", 2.0)
    config.set_local("features.5.0", IlwpConfig(anchor="quantized"))
    with pytest.raises(ConfigError, match="'features.5.0' changes 'anchor' to 'quantized'.*whole model"):
        config.to_config_mapping(model_info=INFO)
    with pytest.raises(ConfigError, match="expected an IlwpConfig, got dict"):
        IlwpConfig().set_local("features.4.0", {"bits": 4})


def configurations() -> list[IlwpConfig]:
    return [
        IlwpConfig(),
        IlwpConfig(bits=None, loss_weight=3.5, scope="conv"),
        IlwpConfig(bits=[3, 4], mode=["local", "none"], layers=["b", "a"]),
        IlwpConfig(white_list=["features.3", nn.Conv2d], bits=4, ignored_scopes=["{re}.*x"]),
        IlwpConfig(white_list=None).set_local("features.3", IlwpConfig(bits=5)),
        IlwpConfig(anchor="fp16").set_local(nn.Conv2d, IlwpConfig(bits=5)).set_local("a.*", IlwpConfig(bits=None)),
    ]


@pytest.mark.parametrize("number", range(len(configurations())))
def test_dict_json_and_copy_lose_nothing(number: int, tmp_path: Path) -> None:
    config = configurations()[number]
    assert IlwpConfig.from_dict(config.to_dict()) == config
    assert IlwpConfig.from_dict(json.loads(config.to_json_string())) == config
    config.to_json_file(str(tmp_path / "x.json"))
    assert IlwpConfig.from_json_file(str(tmp_path / "x.json")) == config
    assert copy.deepcopy(config) == config
    assert [other == config for other in configurations()] == [i == number for i in range(len(configurations()))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not|Expecting"),
        ('{"bits": 4, "bits": 5}', "duplicate key 'bits'"),
        ("[4]", "expected an object"),
        ('{"global": {}, "locl": {}}', "unknown key 'locl'"),
        ('{"local": {"a": {"bist": 3}}}', "did you mean 'bits'"),
    ],
)
def test_invalid_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        IlwpConfig.from_json_file(str(tmp_path / "x.json"))
    with pytest.raises(FileError, match="absent"):
        IlwpConfig.from_json_file(str(tmp_path / "absent.json"))


def test_sum_of_two() -> None:
    first = IlwpConfig(bits=4, white_list=["features.3"])
    total = first + IlwpConfig(bits=8, white_list=["features.4"])
    assert bits(total) == {"features.3.0": 4, "features.3.3": 4, "features.4.0": 8, "features.4.3": 8}
    assert set(bits(first)) == {"features.3.0", "features.3.3"}, "the terms stay as they are"
    with pytest.raises(ConfigError, match="not its 'bits'"):
        IlwpConfig(bits=4) + IlwpConfig(bits=5)
    with pytest.raises(ConfigError, match="not its 'anchor'"):
        IlwpConfig(bits=4) + IlwpConfig(bits=5, anchor="fp16", white_list=["features.4"])


def test_expansion() -> None:
    config = IlwpConfig(bits=[3, 5], mode=["local", "none"], anchor="fp16", loss_weight=0, target_scopes=["features"])
    config.set_local("features.3", IlwpConfig(bits=8))
    expanded = config.expand()
    assert [(c.bits, c.mode) for c in expanded] == [(3, "local"), (5, "local"), (3, "none"), (5, "none")]
    assert all(c.anchor == "fp16" and c.loss_weight == 0 and c.target_scopes == ("features",) for c in expanded)
    assert all(bits(c)["features.3.0"] == 8 for c in expanded)
    kept = IlwpConfig(bits=[3, 5], layers=["a"], white_list=["features.3"]).expand()
    assert [set(bits(c).items()) for c in kept] == [{("features.3.0", n), ("features.3.3", n)} for n in (3, 5)]
    assert IlwpConfig(bits=None, mode=["local", "none"]).expand()[0].bits is None, "None is a value, not a default"
    assert len(IlwpConfig().expand()) == 1
    with pytest.raises(ConfigError, match="only the whole model is tuned"):
        IlwpConfig().set_local("features.3", IlwpConfig(bits=[3, 4])).expand()
    with pytest.raises(ConfigError, match=r"bits: \[3, 5\] is a set to tune over"):
        IlwpConfig(bits=[3, 5]).core()


def test_registered_with_a_tuning_set_and_supported_operators() -> None:
    assert config_registry.get_cls_configs()["torch"]["ilwp"] is IlwpConfig
    assert len(IlwpConfig.get_config_set_for_tuning().expand()) == 15
    assert IlwpConfig.supported_configs[0].operators == [nn.Conv2d]


def test_schema_by_the_command_line() -> None:
    command = [str(Path(sys.executable).parent / "ilwp"), "schema", "--toolkit", "inc"]
    schema = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    fields = schema["$defs"]["fields"]["properties"]
    assert set(fields) == {*IlwpConfig().get_params_dict(), "white_list"}
    single, several = fields["bits"]["anyOf"]
    assert several["type"] == "array" and several["items"] == single
    assert fields["mode"]["anyOf"][0]["enum"] == ["auto", "collocated", "full", "local", "none"]


def test_example_is_valid() -> None:
    config = IlwpConfig.from_json_file(str(Path("examples/neural_compressor/config.json")))
    assert bits(config)["features.4.0"] == 8 and bits(config)["features.5.0"] == 6
