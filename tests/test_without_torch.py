"""What works where there is no torch: reading files, and the commands that do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.zoo import build_model

PACKAGE = Path(__file__).parent.parent / "ilwp_plugin"
BLOCKED = "import sys\nfor name in ('torch', 'scipy'): sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("files") / "model.ilwp"
    compress(build_model("mobilenet", width=0.25)).save(path)
    return path


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def ilwp(*arguments: object) -> subprocess.CompletedProcess[str]:
    return python("from ilwp_plugin.cli.main import run\nrun()", *arguments)


def test_commands_that_read(path: Path, tmp_path: Path) -> None:
    assert "good" in ilwp("verify", path).stdout
    assert "bytes" in ilwp("inspect", path).stdout
    done = ilwp("decompress", path, "-o", tmp_path / "x.safetensors")
    assert done.returncode == 0 and (tmp_path / "x.safetensors").exists(), done.stderr
    assert ilwp("--help").returncode == 0


def test_the_schema_is_that_of_the_configuration() -> None:
    """Where this fails: python -m ilwp_plugin.config > ilwp_plugin/schema.json"""
    printed = json.loads(ilwp("schema").stdout)
    assert printed == json.loads(json.dumps(IlwpConfig.model_json_schema()))


def test_what_needs_torch_says_so_in_one_line(path: Path) -> None:
    (path.parent / "model.pt").write_bytes(b"x")
    done = ilwp("compress", path.parent / "model.pt", "-o", path.parent / "new.ilwp")
    assert done.returncode == 1 and "pip install 'ilwp-plugin[torch]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = python("import ilwp_plugin\nilwp_plugin.compress")
    assert done.stderr.strip().splitlines()[-1].startswith("ilwp_plugin.errors.MissingDependencyError")
