"""The example as a user runs it: NNCF's own loop under `ilwp run`, and the config of everything together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ilwp_plugin.zoo import Recipe, accuracy, build_model, load_data, train
from tests.integrations.nncf.helpers import SAFE_ENUMS

EXAMPLES = Path(__file__).parents[3] / "examples" / "nncf"


def run(out: Path, config: str, *arguments: object) -> dict[str, float]:
    command = [Path(sys.executable).parent / "ilwp", "run", "--toolkit", "nncf", EXAMPLES / "train.py", "--out", out]
    command += ["--config", EXAMPLES / "configs" / f"{config}.json", *arguments]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
def test_train(tmp_path: Path) -> None:
    result = run(tmp_path, "all", "--epochs", 2, "--pretrain", 4)
    assert result["file_bytes"] == (tmp_path / "model.ilwp").stat().st_size
    # Half are pruned, and the steps that the data choose round more to 0, for a network that is hardly trained.
    assert 0.4 < result["sparsity"] < 0.9 and result["depthwise_sparsity"] > 0
    assert 0 < result["depthwise_bytes"] < result["file_bytes"]
    if not SAFE_ENUMS:
        pytest.skip("trained; checkpoints cannot be resumed with this Python")
    again = run(tmp_path, "all", "--epochs", 3, "--resume", tmp_path / "checkpoint.pt")
    assert again["file_bytes"] > 0 and (tmp_path / "model.onnx").stat().st_size > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of the example's network, trained on digits."""
    data = load_data("digits")
    torch.manual_seed(0)
    model = build_model("mobilenetv2", width=0.25, stem_stride=2, in_channels=data.channels, classes=data.classes)
    train(model, data, Recipe(epochs=30, batch=64))
    assert accuracy(model, data) > 95
    path = tmp_path_factory.mktemp("trained") / "start.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ilwp", "magnitude_sparsity", "int8"])
def test_smaller_at_the_same_accuracy(config: str, trained: Path, tmp_path: Path) -> None:
    options = ("--epochs", 8, "--start", trained)
    without = run(tmp_path / "without", config, *options, "--without", "ilwp")
    result = run(tmp_path / "with", config, *options)
    assert result["depthwise_bytes"] < 0.8 * without["depthwise_bytes"]
    assert result["accuracy"] > without["accuracy"] - 3, "360 test images: one is 0.28 points"
    if config == "int8":  # NNCF's conversion of activation quantizers flips some of their codes; ilwp adds nothing
        assert result["mean_strip_difference"] < 1.5 * without["mean_strip_difference"] + 1e-4
        assert result["strip_difference"] < 2 * without["strip_difference"] + 1e-3
    else:
        assert result["strip_difference"] == without["strip_difference"] == 0
