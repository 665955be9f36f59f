"""The examples run as they are, in a process of their own."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ilwp_plugin import IlwpConfig, load

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_train(tmp_path: Path) -> None:
    text = run("train.py", "--epochs", 4, "--out", tmp_path / "x.ilwp")
    assert "accuracy of the restored model" in text
    trained = text.splitlines()[-2].rpartition("accuracy ")[2]
    assert text.splitlines()[-1].endswith(f"restored model {trained}"), "the file holds what training ended with"
    assert {
        layer.details["bits"] for layer in load(tmp_path / "x.ilwp").layers if layer.details.get("mode") == "collocated"
    } == {4}


@pytest.mark.slow
def test_compress_pretrained() -> None:
    text = run("compress_pretrained.py")
    assert text.startswith("efficientnet-lite0") and len(text.splitlines()) == 13


def test_configuration_is_valid() -> None:
    assert IlwpConfig.from_file(EXAMPLES / "ilwp.json").bits == 6


def test_align() -> None:
    text = run("align.py", "--epochs", 2)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    sizes = {(row[0], row[1]): int(row[2].replace(",", "")) for row in rows if row[0].isdigit()}
    assert len(sizes) == 12
    assert all(sizes[bits, "aligned"] < sizes[bits, "collocated"] for bits in ("8", "6", "5", "4"))
    assert "13 layers, refused {}" in text


def test_fine_tune(tmp_path: Path) -> None:
    text = run("fine_tune.py", "--epochs", 2, "--out", tmp_path / "x.ilwp", "--checkpoint", tmp_path / "c.pt")
    ratio = float(text.splitlines()[-1].split(" bytes, ")[1].split()[0])
    assert ratio < 0.4 and {
        layer.details["bits"] for layer in load(tmp_path / "x.ilwp").layers if layer.details.get("mode") == "collocated"
    } == {4}


@pytest.mark.slow
def test_prune(tmp_path: Path) -> None:
    text = run("prune.py", "--epochs", 2, "--out", tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    rows = {(row[0], row[1].split(",")[0]): row[2:] for row in rows if row[0][0].isdigit()}
    assert set(rows) == {("0 %", "none"), ("0 %", "provenance")} | {
        (ratio, method) for ratio in ("30%", "50%") for method in ("none", "aligned", "provenance")
    }
    size = {key: int(cells[0].replace(",", "")) for key, cells in rows.items()}
    for ratio in ("30%", "50%"):
        for method in ("aligned", "provenance"):
            assert size[ratio, method] < size[ratio, "none"] / 2
        growth = float(rows[ratio, "provenance"][3].split(", ")[1].removesuffix(" x"))
        assert growth <= 1.1, "right after pruning survivors have their references"
    assert load(tmp_path / "provenance_50%.ilwp").provenance and not load(tmp_path / "aligned_50%.ilwp").provenance


@pytest.mark.slow
def test_alignment_figures(tmp_path: Path) -> None:
    run("alignment_figures.py", "--out", tmp_path)
    assert {"rate_accuracy.png", "distributions_3x3.png", "references_3x3.png"} <= {f.name for f in tmp_path.iterdir()}


@pytest.mark.parametrize("page", ["paper", "recipes"])
def test_pages_are_what_their_results_say(page: str, tmp_path: Path) -> None:
    run(f"{page}.py", "--out", tmp_path)
    assert (tmp_path / f"{page}.md").read_text() == (EXAMPLES.parent / "docs" / f"{page}.md").read_text()
    pictures = set(re.findall(r"\(figures/(\S+)\)", (tmp_path / f"{page}.md").read_text()))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == pictures != set()


@pytest.mark.parametrize(
    ("value", "short"),
    [(0.5, True), (-0.75, True), (7 / 8, True), (2**-9 * 127, True), (0.3, False), (85 / 256, False), (73 / 128, True)],
)
def test_sums_of_three_powers_of_two(value: float, short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    assert importlib.import_module("recipes").is_short(value) is short


def test_the_readme_shows_what_the_results_say(tmp_path: Path) -> None:
    run("headline.py", "--out", tmp_path)
    for page in ("README.md", "docs/compare.md"):
        assert (tmp_path / page).read_text() == (EXAMPLES.parent / page).read_text()


@pytest.mark.slow
def test_neural_compressor(tmp_path: Path) -> None:
    text = run("neural_compressor/quantize.py", "--epochs", 4, "--out", tmp_path)
    sizes = {
        line.split(": ")[0]: int(line.split(": ")[1].split(" ")[0].replace(",", ""))
        for line in text.splitlines()
        if " bytes, accuracy " in line
    }
    assert sizes["ilwp and static INT8"] < 0.6 * sizes["static INT8 alone"] < 0.6 * sizes["fp32"] / 3.5
    assert sizes["tuned"] < sizes["after training"] and sizes["tuned, all layers"] < sizes["static INT8 alone"]
    assert {path.stat().st_size for path in tmp_path.glob("*.ilwp")} == set(sizes.values()) - {sizes["fp32"]}


@pytest.mark.slow
def test_neural_compressor_table() -> None:
    text = run("neural_compressor/compare.py", "--epochs", 4, "--step", 0.2)  # no code beyond INT8
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    files = {row[0]: int(row[4].replace(",", "")) for row in rows if row[4].replace(",", "").isdigit()}
    assert len(rows) == 10 and len(files) == 6
    in_int8 = {name: files[name] for name in files if "INT8" in name}
    smallest = min(in_int8, key=in_int8.__getitem__)
    assert smallest == "ilwp, a grid for each layer + static INT8" and files[smallest] < files["INC static INT8"] / 2
    assert files[smallest] - files["ilwp alone, a grid for each layer"] < 1000, "activation scales and a digest"


@pytest.mark.slow
def test_whole_model() -> None:
    text = run("whole_model.py", "--steps", 0.05)
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert cells[2].startswith("1/") and float(cells[2].removeprefix("1/")) > 10 and float(cells[7]) > -3
