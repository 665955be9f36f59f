"""The command as a user runs it, in a process of its own."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ilwp_plugin import IlwpConfig, compress, estimate, load
from ilwp_plugin.cli import demo
from ilwp_plugin.zoo import MODELS, build_model

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
    assert "times smaller" in text and text.count("\n") == 1
    model = compress(state, IlwpConfig(mode="local", bits=5))
    assert out.read_bytes() == model.to_bytes()

    report = ilwp_json("inspect", out)
    whole = model.ledger.whole.to_dict()
    assert {name: report[name] for name in whole} == whole
    parts = {name: size for name, size in report.items() if name.endswith("_bytes")}
    assert sum(parts.values()) - report["total_bytes"] == 2 * report["file_bytes"] == 2 * out.stat().st_size
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
    chain = [name for name, layer in report["layers"].items() if layer["kind"] == "chain"]
    assert chain == ["features.5.0.weight", "features.3.0.weight"]


def test_one_line_says_what_was_done(state: dict[str, Tensor], model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.ilwp"
    text = ilwp("compress", model_file, "-o", out).stdout
    before, after = model_file.stat().st_size, out.stat().st_size
    assert text.startswith(f"{model_file} ({before:,} bytes) -> {out}: {after:,} bytes, {before / after:.2f} times")
    assert text.count("\n") == 1 and "calibration" in text and 0.15 < after / before < 0.3
    shares = dict(re.findall(r"([a-z][a-z ]*) ([\d.]+)%", text))
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.3) and float(shares["grid"]) > 80
    snr = float(re.findall(r"([\d.]+) dB", text)[0])
    error = sum(float((load(out).tensor(k) - w).double().square().sum()) for k, w in state.items() if w.dim() > 1)
    energy = sum(float(w.double().square().sum()) for w in state.values() if w.dim() > 1)
    assert snr == pytest.approx(10 * math.log10(energy / error), abs=0.06) and snr > 40
    assert "no weight has changed" in ilwp("compress", model_file, "-o", out, "--preset", "lossless").stdout
    assert all(torch.equal(load(out).tensor(name), tensor) for name, tensor in state.items())
    assert ilwp_json("compress", model_file, "-o", out)["weights_snr_db"] == pytest.approx(snr, abs=0.06)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["--preset", "paper", "--bits", "5"], {"preset": "paper", "bits": 5}),
        (["--set", "rate_weight=0.1", "--set", "mode=none"], {"rate_weight": 0.1, "mode": "none"}),
        (["--recipe", "grid", "--set", "weight_step=0.03"], {"recipes": [{"name": "grid", "weight_step": 0.03}]}),
        (
            [
                "--recipe",
                "ilwp",
                "--recipe",
                "grid",
                "--set",
                "ilwp.bits=3",
                "--set",
                'grid.target_scopes=["classifier"]',
            ],
            {"recipes": [{"name": "ilwp", "bits": 3}, {"name": "grid", "target_scopes": ["classifier"]}]},
        ),
    ],
    ids=str,
)
def test_presets_recipes_and_any_field(
    arguments: list[str], fields: dict[str, Any], state: dict[str, Tensor], model_file: Path, tmp_path: Path
) -> None:
    ilwp("compress", model_file, "-o", tmp_path / "x", *arguments)
    assert (tmp_path / "x").read_bytes() == compress(state, IlwpConfig.from_dict(fields)).to_bytes()


def test_safetensors_input(state: dict[str, Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(state, tmp_path / "m.safetensors")
    report = ilwp_json("compress", tmp_path / "m.safetensors", "-o", tmp_path / "x.ilwp")
    assert set(report["layers"]) == {layer.name for layer in compress(state).layers if layer.kind != "raw"}
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
    expected = json.dumps(IlwpConfig.model_json_schema(), indent=1) + "\n"
    assert ilwp("schema").stdout == expected, "run `make schema`"


def test_help_and_version() -> None:
    versions = dict(line.rsplit(" ", 1) for line in ilwp("--version").stdout.splitlines())
    assert versions["ilwp-plugin"].startswith("0.") and {"Python", "numpy", "torch"} <= set(versions)
    assert "--install-completion" in ilwp("--help").stdout
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
        (["compress", "{model}", "-o", "x", "--preset", "papr"], "preset: 'papr' is none; known: "),
        (["compress", "{model}", "-o", "x", "--recipe", "gird"], "'gird' is no recipe; known: "),
        (["compress", "{model}", "-o", "x", "--recipe", "grid", "--bits", "3"], "move bits into one of them"),
        (["compress", "{model}", "-o", "x", "--recipe", "grid", "--set", "bits=3"], "unknown key 'recipes.0.bits'"),
        (["compress", "{model}", "-o", "x", "--recipe", "grid", "--set", "ilwp.bits=3"], "RECIPE.FIELD=JSON, with one"),
        (["compress", "{model}", "-o", "x", "--set", "bits"], "--set bits: expected FIELD=JSON"),
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


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["schema"], 0),
        (["compress", "--help"], 0),
        (["demo", "--help"], 0),
        (["compress", "absent.pt", "-o", "x.ilwp"], 1),
        (["compress", "{folder}", "-o", "x.ilwp"], 1),
        (["compress", "{model}", "-o", "{model}"], 1),
        (["compress", "{model}"], 2),
        (["estimate", "absent.pt"], 1),
        (["analyze", "absent.pt", "-o", "x"], 1),
        (["align", "absent.pt2", "-o", "x.pt2"], 1),
        (["align", "{model}", "-o", "x.pt2"], 1),  # not trusted
        (["decompress", "{file}", "-o", "x.pt"], 2),
        (["decompress", "{file}", "-o", "{out}"], 0),
        (["inspect", "{file}"], 0),
        (["inspect", "{model}"], 1),
        (["verify", "{file}"], 0),
        (["verify", "{file}", "--max-bytes", "10"], 1),
        (["compare", "absent.json", "-o", "x"], 1),
        (["compare", "{model}", "-o", "x"], 1),
        (["report", "{folder}"], 1),
        (["run", "absent.py"], 1),
    ],
)
def test_what_needs_no_torch_does_without(arguments: list[str], code: int, model_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.ilwp"
    compress(torch.load(model_file, weights_only=True)).save(file)
    places = {"model": model_file, "file": file, "folder": tmp_path, "out": tmp_path / "x.safetensors"}
    script = (
        "import sys\nfrom ilwp_plugin.cli import main\ncode = 0\n"
        "try:\n    main.run()\nexcept SystemExit as end:\n    code = end.code\n"
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules\nsys.exit(code)"
    )
    given = [argument.format(**places) for argument in arguments]
    result = subprocess.run([sys.executable, "-c", script, *given], capture_output=True, text=True, check=False)
    assert result.returncode == code and "AssertionError" not in result.stderr, result.stdout + result.stderr


def test_commands_start_at_once() -> None:
    """In seconds of computation, so that others on the machine do not matter; the best of three, the first compiles."""
    script = (
        "import resource, sys\nfrom ilwp_plugin.cli import main\n"
        "try:\n    main.run()\nexcept SystemExit:\n    pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\nprint(used.ru_utime + used.ru_stime)"
    )

    def seconds(*arguments: str) -> float:
        command = [sys.executable, "-c", script, *arguments]
        runs = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3))
        return min(float(run.stdout.splitlines()[-1]) for run in runs)

    assert seconds("--help") < 0.5
    assert seconds("verify", "absent.ilwp") < 0.5
    assert seconds("schema") < 0.5
    assert seconds("inspect", "absent.ilwp") < 0.5
    assert seconds("decompress", "absent.ilwp", "-o", "x.safetensors") < 0.5


def test_wrong_usage_has_its_own_exit_code(tmp_path: Path) -> None:
    assert "Missing option" in ilwp("compress", "x.pt", code=2).stderr
    (tmp_path / "x.ilwp").write_bytes(b"")
    assert "has to end in one of" in ilwp("decompress", tmp_path / "x.ilwp", "-o", "x.pt", code=2).stderr


def test_damage_is_found(state: dict[str, Tensor], tmp_path: Path) -> None:
    data = bytearray(compress(state).to_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.ilwp").write_bytes(data)
    for command in (["verify"], ["inspect"], ["decompress", "-o", tmp_path / "x.safetensors"]):
        assert "the checksum of the file does not match" in ilwp(*command, tmp_path / "x.ilwp", code=1).stderr
    compress(state).save(tmp_path / "y.ilwp")
    assert "the limit is 10" in ilwp("verify", tmp_path / "y.ilwp", "--max-bytes", "10", code=1).stderr


def test_names_and_paths_are_shown_as_they_are(tmp_path: Path) -> None:
    state = {f"a[/b]{i}.weight": torch.randn(4, 1, 3, 3) for i in range(2)}
    torch.save(state, tmp_path / "m.pt")
    out = tmp_path / "o[red].ilwp"
    assert "o[red].ilwp: " in ilwp("compress", tmp_path / "m.pt", "-o", out).stdout
    assert "a[/b]1.weight" in ilwp("inspect", out).stdout
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


@pytest.mark.parametrize("width", [40, 80])
def test_tables_are_as_wide_as_the_terminal(width: int, tmp_path: Path) -> None:
    """Nothing in them is cut: each number is there whole, each long name in pieces of one column."""
    name = "a_module_with_quite_a_long_name." * 4 + "weight"
    shape = (2000, 1, 3, 3) if width == 80 else (20, 1, 3, 3)
    torch.save({f"{n}{name}": torch.randn(shape) for n in "ab"}, tmp_path / "m.pt")
    out = tmp_path / "a_file_with_quite_a_long_name_too.ilwp"
    environment = {**os.environ, "COLUMNS": str(width)}
    ilwp("compress", tmp_path / "m.pt", "-o", out, "--mode", "local")
    for command in (["inspect", out], ["estimate", "m.pt"]):
        run = subprocess.run(
            [ILWP, *command], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
        )
        tables = [line for line in run.stdout.splitlines() if line.startswith(" ")]
        assert tables and all(len(line) <= width for line in tables), run.stdout
        if command[0] != "estimate":
            report = ilwp_json("inspect", out)
            numbers = {f"{report[part]:,}" for part in report if part.endswith("_bytes") and report[part]}
            assert numbers <= set(run.stdout.split())
            column = "".join(
                line.split()[0] for line in tables if "name" in line or "weight" in line or "module" in line
            )
            assert f"a{name}" in column and f"b{name}" in column


def test_decompressed_tensors_are_those_of_the_file(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    state = {
        "half": torch.randn(3, 5).half(),
        "a": shared,
        "alias": shared,
        "bfloat": torch.randn(7, 3).bfloat16(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(5),
        "flag": torch.tensor([True, False, True]),
        "small": torch.randint(-9, 9, (3,), dtype=torch.int8),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "eight": torch.randn(3).to(torch.float8_e4m3fn),
        "zeros": torch.where(torch.rand(50, 4) < 0.9, 0.0, torch.randn(50, 4)),
        **{f"layer{i}.weight": torch.randn(8, 1, 3, 3) for i in range(3)},
    }
    torch.save(state, tmp_path / "m.pt")
    for name in ("x.ilwp", "y.ilwp"):
        options = ["--mode", "local"] if name == "x.ilwp" else ["--config", tmp_path / "lossless.json"]
        (tmp_path / "lossless.json").write_text('{"preset": "lossless"}')
        ilwp("compress", tmp_path / "m.pt", "-o", tmp_path / name, *options)
        ilwp("decompress", tmp_path / name, "-o", tmp_path / "x.safetensors")
        restored, expected = safetensors.torch.load_file(tmp_path / "x.safetensors"), load(tmp_path / name).state_dict()
        assert restored.keys() == expected.keys() == state.keys()
        for key, tensor in expected.items():
            assert restored[key].dtype == tensor.dtype and restored[key].shape == tensor.shape
            a, b = (t.reshape(-1).view(torch.uint8) for t in (restored[key], tensor))
            assert torch.equal(a, b), key
    torch.save({"a": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "m.pt")
    ilwp("compress", tmp_path / "m.pt", "-o", tmp_path / "x.ilwp", "--config", tmp_path / "lossless.json")
    refused = ilwp("decompress", tmp_path / "x.ilwp", "-o", tmp_path / "z.safetensors", code=1).stderr
    assert "a .safetensors file cannot hold 'a': complex128" in refused and not (tmp_path / "z.safetensors").exists()


def test_names_of_255_bytes(tmp_path: Path) -> None:
    torch.save({f"{n}.weight": torch.randn(4, 1, 3, 3) for n in "ab"}, tmp_path / "m.pt")
    for letter in ("x", "\N{GREEK SMALL LETTER ALPHA}"):
        out = tmp_path / (letter * ((255 - len(".ilwp")) // len(letter.encode())) + ".ilwp")
        ilwp("compress", tmp_path / "m.pt", "-o", out)
        back = tmp_path / (letter * ((255 - len(".safetensors")) // len(letter.encode())) + ".safetensors")
        ilwp("decompress", out, "-o", back)
        assert len(safetensors.torch.load_file(back)) == 2


def test_networks_in_the_help_are_those_of_the_zoo() -> None:
    assert demo.MODELS.split(", ") == list(MODELS)


def test_a_closed_pipe_is_no_error(model_file: Path) -> None:
    command = f"'{ILWP}' estimate '{model_file}' --json | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stdout == "{\n" and not result.stderr


def test_inspect_shows_the_grid_and_batch_norms(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.ilwp"
    options = ["--weight-step", "0.05", "--batch-norm", "merged", "--batch-norm-eps", "1e-5"]
    ilwp("compress", model_file, "-o", out, *options)
    layers = ilwp_json("inspect", out)["layers"]
    entry = layers["classifier.weight"]
    assert entry["kind"] == "grid" and entry["step"] == pytest.approx(0.05) and entry["grid_bytes"] > 0
    assert 0 < entry["zeros"] < 1 and 0 < entry["entropy"] < 8
    norm = next(layer for layer in layers.values() if layer["kind"] == "batch_norm")
    assert norm["channels"] > 1 and norm["mantissa_bits"] > 1 and norm["batch_norm_bytes"] > 0
    text = ilwp("inspect", out).stdout
    assert "grid (entropy in bits a value)" in text and "batch norm" in text


def test_quiet(model_file: Path, tmp_path: Path) -> None:
    done = ilwp("--quiet", "compress", model_file, "-o", tmp_path / "x.ilwp")
    assert done.stdout == "" and (tmp_path / "x.ilwp").exists()
    assert json.loads(ilwp("-q", "inspect", "--json", tmp_path / "x.ilwp").stdout)["file_bytes"]
