"""The section in NNCF's JSON, and its schema."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ilwp_integrations.nncf
import jsonschema
import pytest
from ilwp_integrations.nncf import NNCFConfig, schema
from ilwp_integrations.nncf.config import Section

from ilwp_plugin.errors import ConfigError, MissingDependencyError
from tests.integrations.nncf.helpers import FILTERS, ILWP, INT8, MAGNITUDE, RB

EXAMPLES = Path(__file__).parents[3] / "examples" / "nncf" / "configs"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"bist": 4}, "'bist'.*did you mean 'bits'"),
        ({"bits": 9}, "bits: .*less than or equal to 8"),
        ({"mode": "colocated"}, "did you mean 'collocated'"),
        ({"params": {"quantisation_start_epoch": 1}}, "did you mean 'quantization_start_epoch'"),
        ({"params": {"quantization_start_epoch": -1}}, "quantization_start_epoch: .*greater than or equal to 0"),
        ({"params": {"loss_weight_schedule": [[2, 1.0], [1, 0.5]]}}, "rising epochs"),
        ({"params": {"training": {"steps": 10}}}, "training.mean_lr: Field required"),
        ({"params": []}, "expected an object"),
    ],
)
def test_a_wrong_section_is_refused_when_it_is_read(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    whole = {"input_info": {"sample_size": [1, 1, 16, 16]}, "compression": [{**ILWP, **section}, MAGNITUDE]}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ConfigError, match=f"section 'ilwp' of the NNCF config: .*{message}"):
        NNCFConfig.from_json(str(tmp_path / "config.json"))


def test_two_sections_are_refused() -> None:
    for second in (ILWP, {"algorithm": "grid", "weight_step": 0.05}):
        with pytest.raises(ConfigError, match=r"2 sections of ilwp \('ilwp', '(ilwp|grid)'\), expected one"):
            NNCFConfig.from_dict({"compression": [ILWP, second]})


def test_scopes_of_the_whole_config_count_too() -> None:
    section = Section.find({"ignored_scopes": ["a"], "compression": {**ILWP, "ignored_scopes": ["b"]}})
    assert section is not None and section.config.ignored_scopes == ("b", "a")
    assert Section.find({"compression": MAGNITUDE}) is None


@pytest.mark.parametrize("compression", [ILWP, [ILWP, INT8], [MAGNITUDE, ILWP], [RB, ILWP], [FILTERS, ILWP]])
def test_the_schema_takes_what_the_config_takes(compression: Any) -> None:
    whole = {"input_info": {"sample_size": [1, 1, 16, 16]}, "compression": compression}
    NNCFConfig.from_dict(whole)
    jsonschema.validate(whole, schema())
    bad = json.loads(json.dumps(whole).replace('"bits": 4', '"bits": 44'))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema())


def test_the_command_prints_the_schema_and_nothing_else() -> None:
    ilwp = Path(sys.executable).parent / "ilwp"
    text = subprocess.run([ilwp, "schema", "--toolkit", "nncf"], capture_output=True, text=True, check=True).stdout
    assert json.loads(text) == json.loads(json.dumps(schema()))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    config = NNCFConfig.from_json(str(path))
    assert Section.find(config) is not None
    jsonschema.validate(dict(config), schema())


@pytest.mark.parametrize("found", ["2.7.0", "2.18.0", "2.20.0", "4.0.0"])
def test_other_versions_of_nncf_are_refused_by_number(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    spec = importlib.util.spec_from_file_location("beside_another_nncf", ilwp_integrations.nncf.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(
        MissingDependencyError, match=rf"nncf {found} is installed; ilwp works with nncf 2\.19 and 3\.x"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
