"""`ilwp compress model.onnx` and back."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from ilwp_integrations.onnx import compress_model
from typer.testing import CliRunner

from ilwp_plugin import toolkits
from ilwp_plugin.cli.main import app
from ilwp_plugin.errors import FileError, FormatError, IlwpError, MissingDependencyError
from tests.integrations.onnx.graphs import GRAPHS


def ilwp(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(GRAPHS["depthwise"]()[0], tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_there_and_back(path: Path) -> None:
    small, back = path.with_suffix(".ilwp"), path.with_name("back.onnx")
    said = ilwp("compress", path, "-o", small)
    assert f"{path.stat().st_size:,} bytes" in said and f"{small.stat().st_size:,} bytes" in said and " dB" in said
    assert small.read_bytes() == compress_model(path).to_bytes(), "Python writes the same"
    assert "good" in ilwp("verify", small)
    report = json.loads(ilwp("inspect", small, "--json"))
    assert report["file_bytes"] == small.stat().st_size and report["tensors"] == {}
    assert "graph" in ilwp("inspect", small)
    ilwp("decompress", small, "-o", back)
    onnx.checker.check_model(onnx.load(back))
    inputs = GRAPHS["depthwise"]()[1]
    found, expected = (onnxruntime.InferenceSession(str(file)).run(None, inputs)[0] for file in (back, path))
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
    ilwp("decompress", small, "-o", path.with_name("tensors.safetensors"))


def test_options_reach_it(path: Path) -> None:
    small = path.with_suffix(".ilwp")
    report = json.loads(ilwp("compress", path, "-o", small, "--preset", "lossless", "--json"))
    assert report["weights_snr_db"] is None and report["source_bytes"] == path.stat().st_size
    whole = small.stat().st_size
    ilwp("compress", path, "-o", small, "--target-bytes", whole // 2)
    assert small.stat().st_size <= whole // 2


def test_external_data_counts(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    said = ilwp("compress", path, "-o", path.with_suffix(".ilwp"))
    assert f"{path.stat().st_size + path.with_name('m.data').stat().st_size:,} bytes" in said
    path.with_name("m.data").unlink()
    with pytest.raises(FileError, match=r"m\.data"):
        ilwp("compress", path, "-o", path.with_suffix(".ilwp"))


def test_what_cannot_be_is_refused(path: Path) -> None:
    small = path.with_suffix(".ilwp")
    ilwp("compress", path, "-o", small)
    with pytest.raises(IlwpError, match="--key"):
        ilwp("compress", path, "-o", small, "--key", "model")
    with pytest.raises(FileError, match="it is the input"):
        ilwp("decompress", small.rename(path), "-o", path)
    done = CliRunner().invoke(app, ["decompress", str(path), "-o", str(path.with_suffix(".tflite"))])
    assert done.exit_code == 2 and ".safetensors, .onnx" in " ".join(done.output.split())
    with pytest.raises(FileError, match="no ONNX model that can be read"):
        ilwp("compress", path, "-o", small)  # an .ilwp file by the name of a model
    np.savez(path.with_suffix(".npz"), a=np.ones(3))
    ilwp("compress", _state(path), "-o", small)
    with pytest.raises(FormatError, match="holds no ONNX model"):
        ilwp("decompress", small, "-o", path.with_name("back.onnx"))
    assert not path.with_name("back.onnx").exists()


def _state(path: Path) -> Path:
    import torch

    torch.save({"layer.weight": torch.randn(8, 8)}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def test_without_the_package_onnx(path: Path) -> None:
    code = "import sys; sys.modules['onnx'] = None\nfrom ilwp_plugin.cli.main import run\nrun()"
    command = [sys.executable, "-c", code, "compress", str(path), "-o", str(path.with_suffix(".ilwp"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'ilwp-plugin[onnx]'" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_files_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    entries = [EntryPoint("abc", "absent_package_abc", toolkits.FILES)]
    monkeypatch.setattr(toolkits, "entry_points", lambda group: entries)
    assert toolkits.suffixes() == [".abc"] and toolkits.for_file("x.onnx", "open_model") is None
    with pytest.raises(MissingDependencyError, match="absent_package_abc"):
        toolkits.for_file("x.ABC", "open_model")
