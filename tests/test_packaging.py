"""What a wheel holds, and what the core may import."""

import configparser
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import ilwp_plugin

ROOT = Path(__file__).parent.parent


def test_every_folder_is_packaged() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ilwp_plugin").rglob("__init__.py")}
    adapters = {path.parent.relative_to(ROOT / "integrations") for path in (ROOT / "integrations").rglob("__init__.py")}
    found |= {".".join(["ilwp_integrations", *path.parts]) for path in adapters}
    assert listed == found
    assert all((ROOT / folder / "py.typed").exists() for folder in ("ilwp_plugin", "integrations"))


def test_every_file_that_is_no_module_is_packaged() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = {f"{package}/{name}" for package, names in setup["options.package_data"].items() for name in names.split()}
    tracked = subprocess.run(["git", "ls-files", "ilwp_plugin"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [Path(name) for name in tracked.stdout.split() if not name.endswith(".py")]
    assert {f"{'.'.join(file.parent.parts)}/{file.name}" for file in files} | {"ilwp_integrations/py.typed"} == listed


def test_version_and_command() -> None:
    assert version("ilwp-plugin") == ilwp_plugin.__version__
    (command,) = entry_points(group="console_scripts", name="ilwp")
    assert command.value == "ilwp_plugin.cli.main:run"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {ilwp_plugin.__version__}" in changelog


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {ilwp_plugin.__version__}\n" in citation
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    again = re.compile(rf"^(__)?version(__)?\s*=\s*[\"']?{re.escape(ilwp_plugin.__version__)}", re.MULTILINE)
    holds = [n for n in tracked if Path(n).suffix in {".py", ".cfg", ".toml"} and again.search((ROOT / n).read_text())]
    assert holds == ["ilwp_plugin/_version.py"]


def test_the_core_imports_no_toolkit_and_no_optional_library() -> None:
    script = (
        "import sys, ilwp_plugin, ilwp_plugin.training, ilwp_plugin.analysis, ilwp_plugin.zoo, ilwp_plugin.cli.main\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    forbidden = {"nncf", "neural_compressor", "torch_pruning", "matplotlib", "sklearn", "pytest", "ilwp_integrations"}
    forbidden |= {"jinja2", "optuna", "psutil", "zstandard"}
    assert not forbidden & set(loaded)


def test_public_names_are_documented() -> None:
    for name in ilwp_plugin.__all__:
        if name != "__version__":
            assert getattr(ilwp_plugin, name).__doc__, name


def test_sources_speak_of_the_project_alone() -> None:
    """No paths of a machine, no registry hosts."""
    known = r"(www\.)?(apache\.org|json-schema\.org|arxiv\.org)|localhost|127\.0\.0\.1"
    pattern = re.compile(rf"/work/|/root/|https?://(?!{known})", re.IGNORECASE)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    own = str(Path(__file__).relative_to(ROOT))
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".cfg", ".toml", ".txt", ".json"} and name != own:
            assert not pattern.search(path.read_text(encoding="utf-8")), name
