"""The grid of a comparison."""

from __future__ import annotations

import itertools
import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from ilwp_plugin import IlwpConfig, toolkits
from ilwp_plugin.compare import CompareConfig, read_results
from ilwp_plugin.compare.methods import find_method
from ilwp_plugin.errors import ConfigError, FileError, MissingDependencyError, RegistryError

GRID: dict[str, Any] = {
    "data": ["digits"],
    "networks": [{"epochs": 2}, {"model": "mobilenetv2", "epochs": 2}],
    "seeds": [0, 1],
    "methods": [
        {"method": "fp32"},
        {"method": "ilwp", "loss_weight": [0, "auto"], "options": {"mode": "collocated"}, "grid": {"bits": [8, 4]}},
    ],
}


def test_every_cell_once_and_trainings_first() -> None:
    tasks = CompareConfig.from_dict(GRID).tasks()
    assert len(tasks) == 2 * 2 * (2 + 1 + 2 * 2)  # networks, seeds, (trainings, fp32, losses x bits)
    assert len({task.key for task in tasks}) == len(tasks)
    trainings = [task for task in tasks if task.method is None]
    kinds = [(task.network.model, task.method is None) for task in tasks]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [
        (model, training) for model in ("mobilenet", "mobilenetv2") for training in (True, False)
    ]
    assert {task.network.key for task in tasks} == {task.network.key for task in trainings}


def test_keys_do_not_depend_on_the_rest_of_the_grid_or_on_spelled_out_defaults() -> None:
    whole = {task.key for task in CompareConfig.from_dict(GRID).tasks()}
    part = {**GRID, "seeds": [1], "methods": [{"method": "ilwp", "options": {"bits": 4}}]}
    assert {task.key for task in CompareConfig.from_dict(part).tasks()} < whole
    default = {**part, "methods": [{"method": "ilwp", "options": {"bits": 4, "mode": "collocated", "anchor": "fp32"}}]}
    assert CompareConfig.from_dict(default).tasks() == CompareConfig.from_dict(part).tasks()


def test_a_line_for_some_networks_only() -> None:
    """Neither its methods nor the trainings that only they need are done for the others."""
    sweep = {"method": "ilwp", "loss_weight": [1.0, 5.0], "models": ["mobilenetv2"]}
    more = CompareConfig.from_dict({**GRID, "methods": [*GRID["methods"], sweep]}).tasks()
    added = [task.network for task in more if task not in CompareConfig.from_dict(GRID).tasks()]
    assert len(added) == 2 * 2 * 2  # seeds, weights, (training, method)
    assert {network.model for network in added} == {"mobilenetv2"}
    assert {network.loss_weight for network in added} == {1.0, 5.0}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"methods": []}, ConfigError, "methods"),
        ({"seeds": [-1]}, ConfigError, r"seeds\.0.*-1"),
        ({"sedes": [1]}, ConfigError, "sedes"),
        ({"data": ["digit"]}, RegistryError, "did you mean 'digits'"),
        ({"methods": [{"method": "ilwpp"}]}, RegistryError, "did you mean 'ilwp'"),
        ({"methods": [{"method": "ilwp", "options": {"bit": 4}}]}, ConfigError, r"methods\.0 \(ilwp\).*'bit'"),
        (
            {"methods": [{"method": "fp32"}, {"method": "zstd", "grid": {"level": [99]}}]},
            ConfigError,
            r"methods\.1.*99",
        ),
        (
            {"methods": [{"method": "fp32", "models": ["mobilenetv3"]}]},
            ConfigError,
            r"methods\.0\.models: no network is a 'mobilenetv3'; .*did you mean 'mobilenet",
        ),
        ({"methods": [{"method": "nowhere.static"}]}, RegistryError, "unknown integration 'nowhere'"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        CompareConfig.from_dict({**GRID, **change}).tasks()


def test_an_absent_toolkit_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("absent", "ilwp_integrations.absent", toolkits.GROUP)
    monkeypatch.setattr(toolkits, "entry_points", lambda group: [entry])
    with pytest.raises(MissingDependencyError, match=r"ilwp-plugin\[absent\]"):
        CompareConfig.from_dict({**GRID, "methods": [{"method": "absent.int8"}]})


def test_an_integration_without_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkits, "load", lambda name: object())
    with pytest.raises(RegistryError, match="offers no methods"):
        find_method("some.thing")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(GRID))
    assert CompareConfig.from_file(path) == CompareConfig.from_dict(GRID)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        CompareConfig.from_file(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="expected an object"):
        CompareConfig.from_file(path)
    with pytest.raises(FileError, match="cannot read"):
        CompareConfig.from_file(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "examples/compare").glob("*.json")), ids=lambda p: p.stem
)
def test_the_presets_are_valid(path: Path) -> None:
    assert CompareConfig.from_file(path).tasks()


def test_what_is_not_said_is_as_in_the_paper() -> None:
    """Whatever the package's own defaults are; and results name what differs."""
    options = find_method("ilwp").options.from_dict({"bits": 4})
    assert options.config == IlwpConfig.paper(bits=4) and options.changes == {"bits": 4}
    small = find_method("ilwp").options.from_dict({"preset": "small"})
    assert small.config == IlwpConfig.small() and small.changes["preset"] == "small"
    assert find_method("ilwp").options.from_dict(small.changes) == small


@pytest.mark.parametrize("name", ["conv", "digits", "figures", "recipes"])
def test_committed_results_are_of_their_preset(name: str) -> None:
    root = Path(__file__).parents[2]
    files = [name, "nncodec"] if name == "recipes" else [name]  # whose page has NNCodec beside them
    configs = [CompareConfig.from_file(root / f"examples/compare/{file}.json") for file in files]
    keys = {task.key for config in configs for task in config.tasks()}
    assert {result.key for result in read_results(root / "docs/results" / name)} <= keys
