"""`ilwp run`: a script or a module, as `python` would run it, with ilwp registered."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from ilwp_plugin import toolkits
from ilwp_plugin.errors import MissingDependencyError

ILWP = Path(sys.executable).parent / "ilwp"


def run(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [ILWP, "run", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == code, result.stdout + result.stderr
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    (tmp_path / "script.py").write_text(
        "import sys\nfrom beside import VALUE\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv, VALUE, 'ilwp_integrations.torch_pruning' in sys.modules)\n"
        "    sys.exit(int(sys.argv[-1]))\n"
    )
    return tmp_path


def test_a_script_with_its_own_options(folder: Path) -> None:
    text = run("--toolkit", "pruning", "script.py", "-m", "--config", "x.json", 3, cwd=folder, code=3).stdout
    assert text == "['script.py', '-m', '--config', 'x.json', '3'] 7 True\n"


def test_a_module(folder: Path) -> None:
    text = run("--toolkit", "pruning", "-m", "script", "--toolkit", "none", 0, cwd=folder).stdout
    assert text.endswith("'--toolkit', 'none', '0'] 7 True\n") and str(folder / "script.py") in text


def test_errors(folder: Path) -> None:
    assert "no script 'absent.py'" in run("absent.py", cwd=folder, code=1).stderr
    assert "unknown integration 'nncff'" in run("--toolkit", "nncff", "script.py", cwd=folder, code=1).stderr
    (folder / "bad.py").write_text("from ilwp_plugin import IlwpConfig\nIlwpConfig(bits=99)\n")
    error = run("--toolkit", "pruning", "bad.py", cwd=folder, code=1).stderr
    assert "bad.py" in error and "ConfigError: bits" in error, "with the place in the script"


def test_only_what_is_installed_is_registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "here.py").write_text("def register(): pass\n")
    (tmp_path / "away.py").write_text("import a_toolkit_that_is_not_there\n")
    (tmp_path / "broken.py").write_text("from json import no_such_name\n")

    def announce(*names: str) -> None:
        entries = [EntryPoint(name, name, toolkits.GROUP) for name in names]
        monkeypatch.setattr(toolkits, "entry_points", lambda group: entries)

    announce("here", "away")
    assert toolkits.register_installed() == {"here": None, "away": "a_toolkit_that_is_not_there is not installed"}
    with pytest.raises(MissingDependencyError, match="a_toolkit_that_is_not_there"):
        toolkits.register_installed(["away"])
    announce("here", "broken")
    with pytest.raises(MissingDependencyError, match="no_such_name"):
        toolkits.register_installed()
