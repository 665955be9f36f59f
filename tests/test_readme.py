"""The code of the README and of every page of docs runs when it is pasted, and prints what the page says."""

import configparser
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from ilwp_plugin import compress
from ilwp_plugin.cli.main import app
from ilwp_plugin.compare import CompareConfig
from ilwp_plugin.zoo import build_model
from tests.pages import ROOT, Page, check_blocks, check_output, pages, run_page

PAGES = pages()
ON_THEIR_OWN = {"nncf", "neural_compressor", "torch_pruning"}
"""Toolkits that change torch or themselves when they are imported: pages with these run in a process of their own."""


def _installed(name: str) -> bool:
    return shutil.which(name) is not None or importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_what_they_say(page: Page) -> None:
    check_blocks(page)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.slow else [], id=page.name) for page in PAGES if page.runs],
)
def test_blocks_run_one_after_the_other(page: Page, tmp_path: Path) -> None:
    for name in page.needs:
        if not _installed(name):
            pytest.skip(f"needs {name}")
    if not page.alone and not ON_THEIR_OWN & set(page.needs):
        run_page(page, tmp_path)
        return
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "tests.pages", page.name, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_readme_can_be_read_in_one_sitting() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200


def test_output_is_compared() -> None:
    check_output("a  b\n1.25 s\n12,345 bytes", "a b\n... s\n12,000 bytes", "here")
    check_output("(10, 256)", "(10, 256)", "here")
    for printed in ("13 bytes", "12 kB", "12 bytes more", "-12 bytes"):
        with pytest.raises(AssertionError, match="expected"):
            check_output(printed, "12 bytes", "here")


CONFIGURATIONS = [
    pytest.param(json.loads(block.content), id=f"{page.name}:{block.line}")
    for page in PAGES
    for block in page.blocks
    if block.language == "json" and not block.title
]


@pytest.mark.parametrize("content", CONFIGURATIONS)
def test_configurations_of_pages_work(content: dict[str, object]) -> None:
    if "methods" in content:
        assert CompareConfig.from_dict(content).methods
        return
    model = build_model("lenet300", in_channels=1)
    compressed = compress(model, content)
    fp32 = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert len(compressed.to_bytes()) < fp32 / 3


COMMAND = re.compile(r"(?:OMP_NUM_THREADS=1 )?(python|make|ilwp|pip install|pytest|nox|pre-commit|git|torchrun)\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_not_run_could_be(page: Page) -> None:
    """Those in blocks `sh` and in the text: what they name is there."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    lines = [
        line.partition("  #")[0]
        for block in page.blocks
        if block.language == "sh"
        for line in block.content.splitlines()
    ]
    for line in filter(None, lines):
        assert COMMAND.match(line), f"{page.name}: what does this do? {line}"
    for command in [*lines, *spans]:
        if COMMAND.match(command):
            check_command(command.removeprefix("OMP_NUM_THREADS=1 "), page.name)


def check_command(command: str, where: str) -> None:
    """Raises AssertionError where it names a target, an extra, a script, a command or an option that is not there."""
    words = shlex.split(command)
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert len(words) == 1 or words[1] in targets, f"{where}: {command}: no such target"
    elif words[:2] == ["pip", "install"]:
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg", encoding="utf-8")
        extras = {extra for found in re.findall(r"\[([\w,-]+)\]", command) for extra in found.split(",")}
        assert extras <= set(setup["options.extras_require"]), f"{where}: {command}: no such extra"
    elif words[0] == "python" and words[1] == "-m" and words[2].startswith("ilwp_integrations"):
        assert importlib.util.find_spec(words[2]) is not None, f"{where}: {command}: no such module"
    elif words[0] in ("python", "pytest"):
        for path in (word for word in words[1:] if word.endswith(".py") and "/" in word):
            assert (ROOT / path).is_file(), f"{where}: {command}: no such script"
            source = (ROOT / path).read_text(encoding="utf-8")
            assert all(f'"{option}"' in source for option in options), f"{where}: {command}: no such option"
    elif words[0] == "ilwp":
        context = get_command(app).make_context("ilwp", [], resilient_parsing=True)
        own = {name for parameter in context.command.get_params(context) for name in parameter.opts}
        if len(words) > 1 and not words[1].startswith("-") and words[1] != "COMMAND":
            command_ = context.command.get_command(context, words[1])
            assert command_ is not None, f"{where}: {command}: no such command"
            own |= {name for parameter in command_.params for name in parameter.opts} | {"--help"}
        assert options <= own, f"{where}: {command}: no such option"


def test_commands_are_checked() -> None:
    good = [
        "make docs",
        "pip install '.[torch,onnx]'",
        "python examples/how_small.py --seeds 0",
        "ilwp compress a --preset paper",
    ]
    for command in good:
        check_command(command, "here")
    bad = [
        "make dinner",
        "pip install '.[tea]'",
        "python examples/how_large.py",
        "python examples/how_small.py --seed",
        "ilwp explode",
    ]
    for command in [*bad, "ilwp compress a --prefix paper"]:
        with pytest.raises(AssertionError, match="no such"):
            check_command(command, "here")


MADE = {"reference", "contributing.md", "changelog.md", "security.md"}
"""What only the site has, in docs."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    text = re.sub(r"```.*?```", "", page.path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path = link.partition("#")[0]
        target = (page.path.parent / path).resolve()
        if not path or ":" in path:
            continue
        inside = target.is_relative_to(ROOT / "docs") and target.relative_to(ROOT / "docs").parts[0] in MADE
        assert target.exists() or inside, f"{page.name}: {link}"
