import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import ilwp_integrations
import pytest

from ilwp_plugin import toolkits
from ilwp_plugin.compare.methods import find_method
from ilwp_plugin.errors import MissingDependencyError, RegistryError


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Announces entry points, whose modules may lie in tmp_path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def enter(**values: str) -> None:
        entries = [EntryPoint(name.rstrip("_"), value, ilwp_integrations.GROUP) for name, value in values.items()]
        monkeypatch.setattr(toolkits, "entry_points", lambda group: entries)

    return enter


def test_found_lazily(announce, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "toolkit_a.py").write_text("def register(): return 'done'\n")
    announce(a="toolkit_a", b="toolkit_b")
    assert ilwp_integrations.names() == ["a", "b"]
    assert "toolkit_a" not in sys.modules
    assert ilwp_integrations.load("a").register() == "done"


def test_errors(announce, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "no_register.py").write_text("")
    (tmp_path / "needs.py").write_text("import a_toolkit_that_is_not_there\n")
    announce(first="no_register", second="needs", third="ilwp_integrations.absent")
    with pytest.raises(RegistryError, match="unknown integration 'frist'.*did you mean 'first'"):
        ilwp_integrations.load("frist")
    with pytest.raises(RegistryError, match="not a module with a function register"):
        ilwp_integrations.load("first")
    with pytest.raises(MissingDependencyError, match="a_toolkit_that_is_not_there.*install it"):
        ilwp_integrations.load("second")
    with pytest.raises(MissingDependencyError, match=r"pip install 'ilwp-plugin\[third\]'"):
        ilwp_integrations.load("third")
    announce(same="a", same_="b")
    with pytest.raises(RegistryError, match="two integrations are called 'same'"):
        ilwp_integrations.names()


def test_what_is_installed_can_be_listed() -> None:
    assert ilwp_integrations.names() == ["inc", "nncf", "onnx", "openvino", "pruning"]
    ilwp_integrations.load("pruning").register()


def test_methods_of_a_toolkit_that_is_not_installed(announce, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "needs_one.py").write_text("import a_toolkit_that_is_not_there\n")
    (tmp_path / "without_methods.py").write_text("def register(): pass\n")
    announce(inc="ilwp_integrations.absent", other="needs_one", plain="without_methods")
    with pytest.raises(MissingDependencyError, match=r"pip install 'ilwp-plugin\[inc\]'"):
        find_method("inc.static")
    with pytest.raises(MissingDependencyError, match="a_toolkit_that_is_not_there"):
        find_method("other.static")
    with pytest.raises(RegistryError, match="'plain' offers no methods"):
        find_method("plain.static")
