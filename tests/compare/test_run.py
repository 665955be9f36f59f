"""Whole comparisons: processes, kills, several at one storage."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ilwp_plugin import load
from ilwp_plugin.compare import (
    CompareConfig,
    MethodResult,
    TaskError,
    TrainingResult,
    build_report,
    compare,
    read_results,
    run,
)
from ilwp_plugin.compare.queue import Queue
from ilwp_plugin.compare.report.figures import ilwp_curves
from ilwp_plugin.compare.report.summary import sections
from ilwp_plugin.errors import ConfigError, FileError

GRID: dict[str, Any] = {
    "networks": [{"epochs": 2}],
    "methods": [
        {"method": "fp32"},
        {"method": "zstd", "options": {"level": 3}, "grid": {"dtype": ["fp16", "int8"]}},
        {"method": "ilwp", "loss_weight": [0, 30.0], "options": {"anchor": "fp16"}, "grid": {"bits": [8, 4]}},
        {"method": "fine_tune", "options": {"bits": 4, "align": True, "epochs": 1}},
    ],
}
TASKS = 2 + 1 + 2 + 4 + 1


def outcome(folder: Path) -> list[dict[str, Any]]:
    """The results without what differs from run to run."""
    measured = {"compression", "loading"}
    return [{k: v for k, v in r.model_dump(mode="json").items() if k not in measured} for r in read_results(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    compare(CompareConfig.from_dict(GRID), folder, workers=1)
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    path = folder.parent / "grid.json"
    path.write_text(json.dumps(GRID))
    command = "from ilwp_plugin.cli.main import run; run()"
    return subprocess.Popen(
        [sys.executable, "-c", command, "compare", str(path), "-o", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_all_is_measured_from_the_file(whole: Path) -> None:
    results = read_results(whole)
    assert len(results) == TASKS
    for result in results:
        if isinstance(result, TrainingResult):
            assert result.analysis["3x3"]["references"]["layers"]
            assert result.parameters > result.depthwise_parameters > 0
            continue
        file = whole / "files" / result.key / "model"
        assert file.stat().st_size == result.sizes.file_bytes
        assert result.accuracy.right - result.accuracy.fp32 == result.accuracy.better - result.accuracy.worse
        assert result.compression.seconds > 0
        assert result.loading.seconds > 0
        if result.group == "ilwp":
            assert result.sizes.depthwise_bytes is not None
            assert 0 < (result.sizes.texture_bytes or 0) < result.sizes.depthwise_bytes < result.sizes.file_bytes
            assert result.sizes.depthwise_bytes == load(file).ledger.total_bytes  # no depthwise layer is elsewhere
    by_title = {r.title: r for r in results if isinstance(r, MethodResult)}
    assert by_title["fp32"].accuracy.change == 0
    small, large = by_title["ilwp collocated, 4 bits"], by_title["ilwp collocated, 8 bits"]
    assert small.sizes.file_bytes < large.sizes.file_bytes
    assert small.sizes.raw_depthwise_bytes < large.sizes.raw_depthwise_bytes


def test_killed_at_any_moment_it_ends_with_the_same_results(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for seconds in (4.0, 6.5, 9.0):
        process = start(folder, "--workers", "2")
        time.sleep(seconds)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, "a task goes on without the process that asked for it"
    process = start(folder, "--workers", "2")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said.decode()
    assert outcome(folder) == outcome(whole)


@pytest.mark.slow
def test_two_processes_in_one_folder(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    processes = [start(folder, "--workers", "1") for _ in range(2)]
    for process in processes:
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said.decode()
    assert len((folder / "results.jsonl").read_bytes().splitlines()) == TASKS
    assert outcome(folder) == outcome(whole)


def test_two_processes_share_a_storage(whole: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.sqlite3'}"
    folders = [tmp_path / "one", tmp_path / "two"]
    processes = [start(folder, "--workers", "1", "--storage", storage) for folder in folders]
    for process in processes:
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said.decode()
    done = [sorted(path.name for path in (folder / "logs").iterdir()) for folder in folders]
    assert all(done)
    assert len(done[0]) + len(done[1]) == TASKS  # each task was done by one of them
    for folder in folders:
        assert outcome(folder) == outcome(whole)


def test_a_failed_task_is_named_and_the_others_are_done(whole: Path) -> None:
    wrong = {"method": "ilwp", "options": {"target_scopes": ["nowhere"]}}
    config = CompareConfig.from_dict({**GRID, "methods": [*GRID["methods"], wrong]})
    with pytest.raises(TaskError, match=r"1 of 11 tasks failed: .*ilwp.*nowhere"):
        compare(config, whole, workers=1)
    assert len(read_results(whole)) == TASKS
    assert len(compare(CompareConfig.from_dict(GRID), whole, workers=1)) == TASKS  # what failed is not of this grid


def _dies(*_: Any) -> None:
    os._exit(3)


def test_a_process_that_dies_is_told(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_child", _dies)
    config = CompareConfig.from_dict({**GRID, "methods": [{"method": "fp32"}]})
    with pytest.raises(TaskError, match="ended with exit code 3; see .*log"):
        compare(config, tmp_path, workers=1)
    assert not multiprocessing.active_children()


def test_nothing_is_done_twice(whole: Path) -> None:
    before = (whole / "results.jsonl").read_bytes()
    told: list[tuple[str, int, int]] = []
    compare(CompareConfig.from_dict(GRID), whole, report=lambda *what: told.append(what))
    assert (whole / "results.jsonl").read_bytes() == before
    assert told[-1] == ("tasks", TASKS, TASKS)


def test_results_outlive_their_queue(whole: Path, tmp_path: Path) -> None:
    content = (whole / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(content)
    assert len(compare(CompareConfig.from_dict(GRID), tmp_path)) == TASKS
    assert (tmp_path / "results.jsonl").read_bytes() == content
    assert not any((tmp_path / "logs").iterdir())  # nothing was done


def test_a_network_without_depthwise_layers(tmp_path: Path) -> None:
    """The loss, the analysis and the bytes that are counted apart are those of its k x k convolutions."""
    grid = {
        "networks": [{"model": "resnet20", "width": 0.5, "epochs": 1}],
        "methods": [
            {"method": "ilwp", "loss_weight": [0, 1e5], "options": {"scope": "conv"}, "grid": {"bits": [8, 4]}}
        ],
    }
    results = compare(CompareConfig.from_dict(grid), tmp_path, workers=1)
    plain, pulled = sorted((r for r in results if isinstance(r, TrainingResult)), key=lambda r: r.loss_weight)
    assert plain.depthwise_parameters == 9 * (8 + 6 * 8 * 8 + 8 * 16 + 5 * 16 * 16 + 16 * 32 + 5 * 32 * 32)

    def residual(training: TrainingResult) -> float:
        return float(training.analysis["3x3"]["distributions"][1]["laplace_scale"])

    assert residual(pulled) < 0.8 * residual(plain), "the loss has pulled dense kernels together"
    for result in (r for r in results if isinstance(r, MethodResult)):
        ledger = load(tmp_path / "files" / result.key / "model").ledger
        assert result.sizes.depthwise_bytes == ledger.total_bytes > 0.1 * ledger.file_bytes
    (section,) = sections(results)
    assert section.layers == "k x k convolutions"
    assert [series.label for series in ilwp_curves(section)] == ["collocated", "collocated (with the loss)"]


CIFAR = Path(__file__).parents[2] / "examples/compare/cifar.json"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("data", "classes"), [("cifar-10", 10), ("cifar-100", 100)])
def test_the_cifar_preset_on_a_folder_of_its_format(tmp_path: Path, data: str, classes: int) -> None:
    """One epoch instead of 200, one seed, and images of noise that has the colour of its class."""
    rng = np.random.default_rng(0)
    label_bytes, folder, parts = {
        "cifar-10": (1, "cifar-10-batches-bin", [*[f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"]),
        "cifar-100": (2, "cifar-100-binary", ["train.bin", "test.bin"]),
    }[data]
    (tmp_path / folder).mkdir()
    for part in parts:
        labels = rng.permutation(np.arange(300) % classes) if "train" in part else np.arange(100) % classes
        pixels = np.clip(labels[:, None] * 2.5 + rng.normal(0, 20, (len(labels), 3072)), 0, 255)
        rows = np.concatenate([np.repeat(labels[:, None], label_bytes, axis=1), pixels], axis=1).astype(np.uint8)
        (tmp_path / folder / part).write_bytes(rows.tobytes())
    values = json.loads(CIFAR.read_text())
    values |= {"data": [data], "seeds": [0]}
    for network in values["networks"]:
        assert network["epochs"] == 200
        network["epochs"] = 1
    for entry in values["methods"]:
        if "grid" in entry:
            entry["grid"]["bits"] = [4]
    out = tmp_path / "out"
    results = compare(CompareConfig.from_dict(values), out, data_folder=tmp_path)
    trainings = [r for r in results if isinstance(r, TrainingResult)]
    assert {(r.network.model, r.network.loss_weight) for r in trainings} == {
        (network["model"], weight) for network in values["networks"] for weight in (0, 1, "auto")
    }
    assert next(r for r in trainings if r.network.model == "mobilenet").depthwise_parameters == 44_640
    assert len(results) == 4 * (3 + 1 + 4 + 2)
    assert "Table 1" in build_report(out).read_text()


def test_a_storage_or_folder_that_cannot_be_used(tmp_path: Path) -> None:
    config = CompareConfig.from_dict(GRID)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot make the folder"):
        compare(config, tmp_path / "file")
    with pytest.raises(FileError, match="cannot open the storage"):
        Queue("nothing://here")
    with pytest.raises(ConfigError, match="at least one worker"):
        compare(config, tmp_path, workers=-1)
