"""Pages of Markdown as programs: their blocks run one after the other, as a reader would paste them.

- `python`: run in one process, and what it prints is what the block `text` behind it says, if there is one.
- `console`: lines after `$ ` are run by bash in the same folder; what they print is what stands below them.
- `python`, `json` and `yaml` with `title="FILE"`: written to that file, and not run.
- `json` without a title: has to be JSON.
- `sh`: setting up, which is not run: pip, make, nox and the like.
- `text` with nothing before it, and other languages: not run.

In expected output `...` stands for anything, and runs of blanks are one. The comment `<!-- test: slow -->` marks a page
whose blocks take long, `<!-- test: needs NAME -->` one that needs a module or a program, `<!-- test: alone -->` one
that leaves something behind in its process and gets one for itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

SET_UP = (
    "pip ",
    "make ",
    "git ",
    "nox ",
    "nox",
    "pre-commit ",
    "python -m ilwp_integrations.nncf.prepare",
    "python -m build",
)
"""What a block `sh` may hold, by how its lines begin."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    title: str
    content: str
    line: int


@dataclass(frozen=True)
class Page:
    """A page of Markdown."""

    path: Path
    blocks: tuple[Block, ...]
    slow: bool
    needs: tuple[str, ...]
    alone: bool

    @classmethod
    def read(cls, path: Path) -> Page:
        text = path.read_text(encoding="utf-8")
        blocks = []
        for found in re.finditer(r"^( *)```([\w-]+)([^\n]*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
            indent, language, options, content = found.groups()
            title = re.search(r'title="([^"]*)"', options)
            lines = [line.removeprefix(indent) for line in content.splitlines()]
            line = text.count("\n", 0, found.start()) + 2
            blocks.append(Block(language, title.group(1) if title else "", "\n".join(lines) + "\n", line))
        needs = re.findall(r"<!-- test: needs ([\w.]+) -->", text)
        return cls(path, tuple(blocks), "<!-- test: slow -->" in text, tuple(needs), "<!-- test: alone -->" in text)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def runs(self) -> bool:
        return any(block.language in ("python", "console") and not block.title for block in self.blocks)


def pages() -> list[Page]:
    """The README, the page for contributors and every page of docs."""
    own = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    return [Page.read(path) for path in own]


def check_blocks(page: Page) -> None:
    """What does not run is at least what it says."""
    for block in page.blocks:
        where = f"{page.name}:{block.line}"
        if block.language == "json":
            try:
                json.loads(block.content)
            except ValueError as error:
                raise AssertionError(f"{where}: no JSON: {error}") from None
        if block.language == "python":
            compile(block.content, where, "exec", dont_inherit=True)
        if block.language in ("sh", "bash", "shell"):
            for line in block.content.splitlines():
                assert not line.strip() or line.startswith((*SET_UP, "#", " ")), f"{where}: not run by a test: {line}"


def run_page(page: Page, folder: Path) -> None:
    """Run all blocks in a folder, which gets what the examples of the repository are read from.

    Raises:
        AssertionError: a block fails, or prints something else than the page says.
    """
    shutil.copytree(ROOT / "examples", folder / "examples")
    names: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    for block in page.blocks:
        where = f"{page.name}:{block.line}"
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.content, encoding="utf-8")
        elif block.language == "python":
            stream = io.StringIO()
            source = "\n" * (block.line - 1) + block.content  # so that a traceback tells the line of the page
            with _inside(folder), contextlib.redirect_stdout(stream):
                try:
                    exec(compile(source, page.name, "exec", dont_inherit=True), names)  # noqa: S102  (our own pages)
                except Exception as error:
                    raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
            printed = stream.getvalue()
            continue
        elif block.language == "text" and printed is not None:
            check_output(printed, block.content, where)
        elif block.language == "console":
            _console(block, folder, where)
        printed = None


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """As the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _console(block: Block, folder: Path, where: str) -> None:
    commands: list[tuple[str, list[str]]] = []
    for line in block.content.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif commands and commands[-1][0].endswith("\\") and not commands[-1][1]:
            commands[-1] = (f"{commands[-1][0][:-1]} {line.strip().removeprefix('> ')}", [])
        else:
            commands[-1][1].append(line)
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
    for command, expected in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{where}: {command}\n{done.stdout}{done.stderr}"
        if expected:
            check_output(done.stdout, "\n".join(expected), f"{where}: {command}")


def check_output(printed: str, expected: str, where: str) -> None:
    """Raises AssertionError where they differ by more than blanks and what `...` stands for."""
    plain = re.sub(r"\s+", " ", printed).strip()
    pattern = ".*?".join(re.escape(re.sub(r"\s+", " ", part)) for part in expected.strip().split("..."))
    assert re.fullmatch(pattern, plain, re.DOTALL), f"{where}: expected\n{expected}\nprinted\n{printed}"


if __name__ == "__main__":  # python -m tests.pages PAGE FOLDER
    run_page(Page.read(ROOT / sys.argv[1]), Path(sys.argv[2]))
