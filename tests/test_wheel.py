"""What `python -m build` makes is installed and works in clean environments."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ilwp_plugin
from tests.pages import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="needs the package build"),
]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the sdist, of what git knows."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True, env=CLEAN)
    return out


def test_metadata(made: Path) -> None:
    (wheel,) = made.glob("*.whl")
    assert wheel.name == f"ilwp_plugin-{ilwp_plugin.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    assert not any(name.startswith(("tests/", "tools/", "examples/", "docs/")) for name in names)
    for field in ("Keywords: ", "Project-URL: ", "Description-Content-Type: text/markdown"):
        assert field in metadata, field
    assert "Requires-Python: >=3.10" in metadata and "Apache-2.0" in metadata and "# ilwp-plugin" in metadata
    (sdist,) = made.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("integrations/nncf/__init__.py") for name in archive.getnames())


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_works_where_nothing_else_is(made: Path, kind: str, tmp_path: Path) -> None:
    """Without torch: files are read. That it is not that of this repository is seen by its place."""
    (package,) = made.glob(kind)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, env=CLEAN)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*command: object) -> str:
        done = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=CLEAN, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(python, "-m", "pip", "install", "--quiet", package)
    assert str(tmp_path) in run(python, "-c", "import ilwp_plugin, ilwp_integrations; print(ilwp_plugin.__file__)")
    ilwp = tmp_path / "venv" / "bin" / "ilwp"
    assert f"ilwp-plugin {ilwp_plugin.__version__}" in run(ilwp, "--version")
    good = min((ROOT / "tests" / "corpus" / "valid").glob("*.ilwp"))
    assert "good" in run(ilwp, "verify", good)
    run(ilwp, "decompress", good, "-o", tmp_path / "x.safetensors")
    assert '"properties"' in run(ilwp, "schema")
