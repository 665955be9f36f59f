"""The command as a user runs it, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ilwp_plugin import IlwpConfig, compress, estimate, load
from ilwp_plugin.zoo import build_model

ILWP = Path(sys.executable).parent / "ilwp"


def ilwp(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    result = subprocess.run([ILWP, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def ilwp_json(*arguments: object) -> Any:
    return json.loads(ilwp(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_model("mobilenet", width=0.25).state_dict()


@pytest.fixture(scope="module")
def model_file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(state, path)
    return path


def test_compress_inspect_verify_decompress(state: dict[str, Tensor], model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.ilwp"
    text = ilwp("compress", model_file, "-o", out, "--mode", "local", "--bits", "5").stdout
    assert "times smaller" in text and "features.3.0.weight" in text
    model = compress(state, IlwpConfig(mode="local", bits=5))
    assert out.read_bytes() == model.to_bytes()

    report = ilwp_json("inspect", out)
    whole = model.ledger.whole.to_dict()
    assert {name: report[name] for name in whole} == whole
    parts = [f"{part}_bytes" for part in ("texture", "non_texture", "table", "anchor", "header", "other")]
    assert sum(report[part] for part in parts) == report["file_bytes"] == out.stat().st_size
    layer = report["layers"]["features.4.0.weight"]
    assert (layer["mode"], layer["bits"]) == ("local", 5) and layer["step"] > 0
    assert 0 <= layer["zeros"] <= 1 and 0 < layer["entropy"] < 5 and layer["non_texture_bytes"] > 0
    assert "features.4.0.weight" in ilwp("inspect", out).stdout

    assert "good" in ilwp("verify", out).stdout
    ilwp("decompress", out, "-o", tmp_path / "x.safetensors")
    restored = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert set(restored) == set(state)
    assert all(torch.equal(restored[name], tensor) for name, tensor in model.state_dict().items())


def test_configuration_file_and_options_go_through_one_model(
    state: dict[str, Tensor], model_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"mode": "none", "bits": 3, "anchor": "fp16"}))
    ilwp(
        "compress", model_file, "-o", tmp_path / "x", "--config", config, "--bits", "6", "--ignored-scope", "features.3"
    )
    expected = IlwpConfig(mode="none", bits=6, anchor="fp16", ignored_scopes=("features.3",))
    assert (tmp_path / "x").read_bytes() == compress(state, expected).to_bytes()
    report = ilwp_json(
        "compress", model_file, "-o", tmp_path / "y", "--layer", "features.5.0", "--layer", "features.3.0",
        "--range", "mse", "--anchor", "quantized", "--scope", "conv",
    )  # fmt: skip
    assert list(report["layers"]) == ["features.5.0.weight", "features.3.0.weight"]
    assert report["excluded"]["features.4.0"] == "not named in `layers`"


def test_safetensors_input(state: dict[str, Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "m.safetensors")
    report = ilwp_json("compress", tmp_path / "m.safetensors", "-o", tmp_path / "x.ilwp")
    assert list(report["layers"]) == [layer.name for layer in compress(state).layers]
    assert load(tmp_path / "x.ilwp").ledger.file_bytes == report["file_bytes"]


def test_checkpoint_with_a_key(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state, "ema": state, "epoch": 3}, tmp_path / "m.ckpt")
    assert "choose one by key (--key): 'state_dict'" in ilwp("estimate", tmp_path / "m.ckpt", code=1).stderr
    ilwp("compress", tmp_path / "m.ckpt", "-o", tmp_path / "x.ilwp", "--key", "state_dict")


def test_estimate_equals_the_files(state: dict[str, Tensor], model_file: Path) -> None:
    rows = ilwp_json("estimate", model_file)["rows"]
    assert {(row["mode"], row["bits"]) for row in rows} == {
        (mode, bits) for mode in ("none", "full", "local", "collocated") for bits in range(2, 9)
    }
    for row in rows[::5]:
        ledger = estimate(state, IlwpConfig(mode=row["mode"], bits=row["bits"]))
        assert {name: row[name] for name in ledger.whole.to_dict()} == ledger.whole.to_dict()
    assert "collocated 8" in ilwp("estimate", model_file).stdout


def test_analyze(model_file: Path, tmp_path: Path) -> None:
    text = ilwp("analyze", model_file, "-o", tmp_path / "figures").stdout
    assert "of the best references are in the layer before" in text
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"references_3x3.png", "distributions_3x3.png", "analysis.json"}
    assert ilwp_json("analyze", model_file, "-o", tmp_path / "b") == json.loads(
        (tmp_path / "figures" / "analysis.json").read_text()
    )


def test_schema() -> None:
    assert json.loads(ilwp("schema").stdout) == IlwpConfig.model_json_schema()


def test_help_and_version() -> None:
    assert "ilwp-plugin 0." in ilwp("--version").stdout
    text = ilwp("--help").stdout
    for command in ("compress", "decompress", "inspect", "verify", "estimate", "analyze", "schema", "demo"):
        assert command in text
        assert "Usage" in ilwp(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "absent.pt", "-o", "x.ilwp"], "cannot read absent.pt: No such file or directory"),
        (
            ["compress", "{model}", "-o", "x.ilwp", "--bits", "9"],
            "bits: Input should be less than or equal to 8, got 9",
        ),
        (["compress", "{model}", "-o", "x.ilwp", "--mode", "colocated"], "did you mean 'collocated'"),
        (["compress", "{model}", "-o", "absent/x.ilwp"], "cannot write"),
        (["compress", "{model}", "-o", "x.ilwp", "--ignored-scope", "nothing"], "'nothing' matches no convolution"),
        (["inspect", "{model}"], "not an .ilwp file"),
        (["verify", "absent.ilwp"], "cannot read absent.ilwp"),
        (["demo", "--data", "mnist"], "unknown data set 'mnist'"),
        (["demo", "--batch", "0"], "make no step"),
        (["demo", "--width", "inf"], "no mobilenet with width inf"),
        (["demo", "--seed", "99999999999999999999"], "expected a number from 0"),
        (["demo", "--data", "cifar-10"], "give the folder of the data set's binary version"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, model_file: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [ILWP, *(argument.replace("{model}", str(model_file)) for argument in arguments)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("ilwp: error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr and not result.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_wrong_usage_has_its_own_exit_code(tmp_path: Path) -> None:
    assert "Missing option" in ilwp("compress", "x.pt", code=2).stderr
    (tmp_path / "x.ilwp").write_bytes(b"")
    assert "has to end in .safetensors" in ilwp("decompress", tmp_path / "x.ilwp", "-o", "x.pt", code=2).stderr


def test_damage_is_found(state: dict[str, Tensor], tmp_path: Path) -> None:
    data = bytearray(compress(state).to_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.ilwp").write_bytes(data)
    for command in (["verify"], ["inspect"], ["decompress", "-o", tmp_path / "x.safetensors"]):
        assert "the checksum of the file does not match" in ilwp(*command, tmp_path / "x.ilwp", code=1).stderr
    assert "the limit is 10" in ilwp("verify", tmp_path / "x.ilwp", "--max-bytes", "10", code=1).stderr


def test_names_and_paths_are_shown_as_they_are(tmp_path: Path) -> None:
    state = {f"a[/b]{i}.weight": torch.randn(4, 1, 3, 3) for i in range(2)}
    torch.save(state, tmp_path / "m.pt")
    out = tmp_path / "o[red].ilwp"
    assert "a[/b]1.weight" in ilwp("compress", tmp_path / "m.pt", "-o", out).stdout
    assert "o[red].ilwp: good" in ilwp("verify", out).stdout


def test_input_and_special_files_are_not_overwritten(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "m.pt")
    before = (tmp_path / "m.pt").read_bytes()
    assert "it is the input" in ilwp("compress", tmp_path / "m.pt", "-o", tmp_path / "m.pt", code=1).stderr
    assert (tmp_path / "m.pt").read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    assert "it is no regular file" in ilwp("compress", tmp_path / "m.pt", "-o", tmp_path / "pipe", code=1).stderr


def test_analyze_without_residuals(tmp_path: Path) -> None:
    torch.save({f"{n}.weight": torch.ones(4, 1, 3, 3) for n in "ab"}, tmp_path / "m.pt")
    assert "figures and analysis.json" in ilwp("analyze", tmp_path / "m.pt", "-o", tmp_path / "f").stdout


def test_a_closed_pipe_is_no_error(model_file: Path) -> None:
    command = f"'{ILWP}' estimate '{model_file}' --json | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stdout == "{\n" and not result.stderr


def test_inspect_shows_the_grid_and_batch_norms(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.ilwp"
    options = ["--weight-step", "0.05", "--batch-norm", "merged", "--batch-norm-eps", "1e-5"]
    ilwp("compress", model_file, "-o", out, *options)
    report = ilwp_json("inspect", out)
    entry = report["grid"]["classifier.weight"]
    assert entry["step"] == pytest.approx(0.05) and 0 < entry["zeros"] < 1 and 0 < entry["entropy"] < 8
    assert 0 < sum(grid["bytes"] for grid in report["grid"].values()) <= report["file_bytes"]
    norm = next(iter(report["batch_norms"].values()))
    assert norm["channels"] > 1 and norm["mantissa_bits"] == 5 and norm["bytes"] > 0
    text = ilwp("inspect", out).stdout
    assert "on a grid" in text and "merged batch norms" in text
