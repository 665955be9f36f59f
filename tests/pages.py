"""Pages of Markdown as programs: their blocks run one after the other, as a reader would paste them.

- `python`: run in one process.
- `bash`: run by bash in the same folder, and ends at the first command that fails.
- `text` right behind one of these: what it prints. `...` stands for anything, runs of blanks are one, and numbers
  may differ by 5 %, since calibration depends a little on the processor.
- `python`, `json` and `yaml` with `title="FILE"`: written to that file, and not run.
- `json` without a title: a configuration, which `tests/test_readme.py` uses.
- `sh`: what is not run, because it sets up or takes hours. Targets, extras, scripts and options in it have to exist.
- other `text`: formulas and the like.

The comment `<!-- test: slow -->` marks a page whose blocks take long, `<!-- test: needs NAME -->` one that needs a
module or a program, `<!-- test: alone -->` one that leaves something behind in its process and gets one for itself.
"""

from __future__ import annotations

import codeop
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

WIDTH = 82
"""Characters of a line of code that are seen on the site without scrolling, in a window of 1280 pixels."""
TOLERANCE = 0.05
"""By which share numbers in what is printed may differ from those of a page."""
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]\d+)?")


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
        return any(block.language in ("python", "bash") and not block.title for block in self.blocks)


def pages() -> list[Page]:
    """The README, the page for contributors and every page of docs."""
    own = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    return [Page.read(path) for path in own]


def check_blocks(page: Page) -> None:
    """What does not run is at least what it says, and no line is cut off.

    Raises:
        AssertionError: names the page and the line.
    """
    text = re.sub(r"^( *)```.*?^\1```$", "", page.path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"^\n {4,}(?![-*|\d])", text, re.MULTILINE), f"{page.name}: a block that is only indented"
    for block in page.blocks:
        where = f"{page.name}:{block.line}"
        assert block.language in ("python", "bash", "sh", "json", "yaml", "text"), f"{where}: {block.language}"
        for line in block.content.splitlines():
            fits = len(line) <= WIDTH or page.name == "README.md"  # which is not on the site
            assert fits, f"{where}: {len(line)} characters, at most {WIDTH} are seen: {line}"
        if block.language == "json":
            try:
                json.loads(block.content)
            except ValueError as error:
                raise AssertionError(f"{where}: no JSON: {error}") from None
        if block.language == "python":
            compile(block.content, where, "exec", dont_inherit=True)
            if not block.title and page.name != "CONTRIBUTING.md":  # which is for files, not for a prompt
                _check_paste(block, where)


def _check_paste(block: Block, where: str) -> None:
    """At the prompt of Python, too, a block that is pasted is taken: there a blank line ends what is indented."""
    pending: list[str] = []
    for line in block.content.splitlines():
        pending.append(line)
        try:
            complete = codeop.compile_command("\n".join(pending), where, "single") is not None
        except SyntaxError as error:
            raise AssertionError(f"{where}: cannot be pasted at the prompt: {line} ({error.msg})") from None
        if complete:
            pending.clear()


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
        elif block.language == "bash":
            printed = _bash(block, folder, where)
            continue
        elif block.language == "text" and printed is not None:
            check_output(printed, block.content, where)
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


def _bash(block: Block, folder: Path, where: str) -> str:
    """What the commands print."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": "120"}
    done = subprocess.run(
        ["bash", "-e", "-c", block.content], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{where}: {block.content}\n{done.stdout}{done.stderr}"
    return done.stdout


def check_output(printed: str, expected: str, where: str) -> None:
    """Raises AssertionError where they differ by more than blanks, `...` and 5 % of a number."""
    plain = re.sub(r"\s+", " ", printed).strip()
    wanted = re.sub(r"\s+", " ", expected).strip()
    pattern = "".join(
        r"([-+]?[\d,.e+-]*\d)" if NUMBER.fullmatch(part) else ".*?".join(map(re.escape, re.split(r" ?\.\.\. ?", part)))
        for part in re.split(f"({NUMBER.pattern})", wanted)
    )
    found = re.fullmatch(pattern, plain, re.DOTALL)
    assert found, f"{where}: expected\n{expected}\nprinted\n{printed}"
    for number, own in zip(NUMBER.findall(wanted), found.groups(), strict=True):
        is_, should = (float(text.replace(",", "")) for text in (own, number))
        near = abs(is_ - should) <= TOLERANCE * abs(should)
        assert near, f"{where}: expected {number}, printed {own}, in\n{printed}"


if __name__ == "__main__":  # python -m tests.pages PAGE FOLDER
    run_page(Page.read(ROOT / sys.argv[1]), Path(sys.argv[2]))
