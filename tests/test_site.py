"""The site is built without a warning, needs nothing from elsewhere, and has a page for everything."""

import html
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.pages import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"?(?:https?:)?//[^\" >]*")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_links_lead_somewhere(site: Path) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"}
    anchors = {path: set(re.findall(r'\b(?:id|name)="?([^" >]+)', text)) for path, text in pages.items()}
    lost = []
    for page, text in pages.items():
        for link in re.findall(r'<(?:a|img|link|script)\b[^>]*?(?:href|src)="?([^" >]+)', text):
            target, _, anchor = unquote(html.unescape(link)).partition("#")
            if re.match(r"[a-z]+:|//", target):
                continue
            path = (page.parent / target).resolve() if target else page
            known = path.is_file() and (
                not anchor or path.suffix != ".html" or anchor in {*anchors[path], "__comments"}
            )
            lost += [] if known else [f"{page.relative_to(site)}: {link}"]
    assert not lost, "\n".join(lost)


def test_every_command_field_and_name_has_its_place(site: Path) -> None:
    commands = (site / "reference" / "command_line.html").read_text(encoding="utf-8")
    for command in ("compress", "decompress", "inspect", "verify", "estimate", "compare", "run"):
        assert f"ilwp {command}" in commands
    assert "--target-bytes" in commands
    schema = json.loads((site / "reference" / "ilwp.schema.json").read_text(encoding="utf-8"))
    fields = (site / "reference" / "configuration.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in fields for name in schema["properties"])
    names = (site / "reference" / "compress_and_restore.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in names or f'">{name}' in names for name in ("compress", "CompressedModel", "FormatError"))
    assert "Frame" in (site / "reference" / "format.html").read_text(encoding="utf-8")
