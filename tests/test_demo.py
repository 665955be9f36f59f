"""A short demo, whole: the numbers it writes are those of the files it leaves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ilwp_plugin import load
from ilwp_plugin.demo import PRESETS, preset, run_demo
from ilwp_plugin.errors import FileError, RegistryError
from ilwp_plugin.zoo import accuracy, build_model, load_data


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "new"
    told: list[tuple[str, int, int]] = []
    run_demo(replace(PRESETS["digits"], epochs=3), folder, report=lambda *args: told.append(args))
    assert {what for what, _, _ in told} == {f"mobilenet {how} the inter-layer loss" for how in ("with", "without")}
    assert all(done <= total == 66 for _, done, total in told) and len(told) == 2 * 66
    return folder


def test_rows(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    assert [(row["method"], row["trained_with_loss"]) for row in rows] == [
        ("none", False),
        ("local", False),
        ("full", False),
        ("collocated", True),
    ]
    fields = {"method", "trained_with_loss", "bits", "texture_bytes", "non_texture_bytes", "total_bytes"}
    assert all(set(row) == fields | {"file_bytes", "accuracy", "accuracy_fp32"} for row in rows)
    assert {"data", "seed", "versions", "settings", "loss_weight"} <= set(results)
    for row in rows:
        ledger = load(out / f"{row['method']}.ilwp").ledger
        assert row["file_bytes"] == ledger.file_bytes == (out / f"{row['method']}.ilwp").stat().st_size
        assert (row["texture_bytes"], row["total_bytes"]) == (ledger.texture_bytes, ledger.total_bytes)
        assert (row["non_texture_bytes"] > 0) == (row["method"] in {"local", "full"})


def test_accuracy_is_that_of_the_file(out: Path) -> None:
    row = json.loads((out / "results.json").read_text())["rows"][-1]
    model = build_model("mobilenet", width=0.25, in_channels=1)
    load(out / "collocated.ilwp").apply_to(model)
    assert accuracy(model, load_data("digits")) == row["accuracy"]


def test_table_and_figures(out: Path) -> None:
    table = (out / "table.md").read_text()
    assert table.startswith("| method |") and "collocated | with" in table and f"torch {torch.__version__}" in table
    for name in ("references_3x3.png", "distributions_3x3.png"):
        assert (out / name).stat().st_size > 10000
    assert set(json.loads((out / "analysis.json").read_text())["3x3"]) == {
        "without the inter-layer loss",
        "with the inter-layer loss",
    }


def test_presets() -> None:
    assert preset("fashion-mnist", epochs=3, width=None).epochs == 3
    assert preset("fashion-mnist").stem_stride == 2
    with pytest.raises(RegistryError, match="did you mean 'fashion-mnist'"):
        preset("fashion-mnst")


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot make the folder"):
        run_demo(PRESETS["digits"], tmp_path / "file")


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    """At most half the bytes of `none` at 8 bits, everything counted, and at most one point less."""
    for seed in range(3):
        rows = {row["method"]: row for row in run_demo(replace(PRESETS["digits"], seed=seed), tmp_path)["rows"]}
        none, collocated = rows["none"], rows["collocated"]
        assert collocated["total_bytes"] <= 0.5 * none["total_bytes"]
        assert collocated["accuracy"] >= none["accuracy"] - 1.0
        for mode in ("local", "full"):
            assert rows[mode]["texture_bytes"] < none["texture_bytes"]
