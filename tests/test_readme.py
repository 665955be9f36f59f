"""The code of the README and of every page of docs runs when it is pasted, and prints what the page says."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    check_output("a  b\n1.25 s\n", "a b\n... s", "here")
    with pytest.raises(AssertionError, match="expected"):
        check_output("12 bytes", "13 bytes", "here")


MADE = {"reference", "contributing.md", "changelog.md", "security.md"}
"""What only the site has, in docs."""
COMING = {"how_small.md", "reliability.md"}
"""Pages that others name before they are there."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    text = re.sub(r"```.*?```", "", page.path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path = link.partition("#")[0]
        target = (page.path.parent / path).resolve()
        if not path or ":" in path or target.name in COMING:
            continue
        inside = target.is_relative_to(ROOT / "docs") and target.relative_to(ROOT / "docs").parts[0] in MADE
        assert target.exists() or inside, f"{page.name}: {link}"
