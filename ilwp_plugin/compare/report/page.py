"""The report: one page that needs nothing else, its pictures, and its tables in Markdown."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ilwp_plugin._imports import optional
from ilwp_plugin.analysis.figures import DPI
from ilwp_plugin.compare.report.drawing import draw
from ilwp_plugin.compare.report.figures import Bars, Figure, Missing, figures, headline
from ilwp_plugin.compare.report.summary import TOLERANCE, Section, sections
from ilwp_plugin.compare.report.tables import (
    Table,
    baselines_table,
    escaped,
    markdown,
    methods_table,
    paper_table,
    settings_table,
)
from ilwp_plugin.compare.report.text import plural
from ilwp_plugin.compare.results import MethodResult, TrainingResult, read_results
from ilwp_plugin.format.container import write_file

__all__ = ["build_report"]


@dataclass(frozen=True)
class Picture:
    """A panel, drawn.

    Attributes:
        file: name of the PNG.
        png: its content.
        alt: what it shows, for who does not see it.
    """

    file: str
    png: bytes
    alt: str

    @property
    def source(self) -> str:
        """As the page holds it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def width(self) -> int:
        """In pixels of the page, of which an inch has 96."""
        return self._pixels[0] * 96 // DPI

    @property
    def height(self) -> int:
        return self._pixels[1] * 96 // DPI

    @property
    def _pixels(self) -> tuple[int, int]:
        width, height = struct.unpack(">II", self.png[16:24])
        return int(width), int(height)


@dataclass(frozen=True)
class Shown:
    """A figure with its pictures."""

    figure: Figure
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Part:
    """What the page says of one network."""

    anchor: str
    section: Section
    headline: Shown | Missing
    all_methods: Table
    paper: Table | Missing
    figures: tuple[Shown | Missing, ...]


def build_report(folder: str | os.PathLike[str]) -> Path:
    """Build `report.html`, its pictures as PNG and its tables as `tables.md`, from the results of a folder alone.

    The same results give the same bytes, in whatever order they were measured.

    Args:
        folder: where `results.jsonl` is.

    Returns:
        The path of the page.

    Raises:
        FileError: there are no results, or the folder cannot be written.
        FormatError: a line is no result.
        MissingDependencyError: matplotlib or jinja2 is absent.
    """
    folder = Path(folder)
    jinja2 = optional("jinja2", "compare")
    results = read_results(folder)
    parts = list(_parts(sections(results)))
    found = [part.section for part in parts]
    context = {
        "intro": _intro(found),
        "tolerance": TOLERANCE,
        "parts": parts,
        "settings": settings_table(found),
        "options": methods_table(found),
        "versions": _versions(results),
        "count": len(results),
        "digest": hashlib.sha256("\n".join(r.model_dump_json() for r in results).encode()).hexdigest(),
    }
    template = resources.files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["together"] = _together
    environment.tests["missing"] = lambda value: isinstance(value, Missing)
    page = environment.from_string(template).render(context)
    for picture in _pictures(parts):
        write_file(folder / picture.file, [picture.png])
    write_file(folder / "tables.md", [_markdown(context).encode()])
    write_file(folder / "report.html", [page.encode()])
    return folder / "report.html"


def _parts(found: Sequence[Section]) -> Iterator[Part]:
    taken: set[str] = set()
    for section in found:
        anchor = re.sub(r"[^a-z0-9.]+", "-", section.name.lower())[:60].strip("-.") or "network"
        while anchor in taken:
            anchor += "-"
        taken.add(anchor)
        head = headline(section)
        bars = [p for p in head.panels if isinstance(p, Bars)] if isinstance(head, Figure) else []
        yield Part(
            anchor,
            section,
            _shown(anchor, head),
            baselines_table(section, [bar.method for panel in bars for bar in panel.bars]),
            paper_table(section),
            tuple(_shown(anchor, figure) for figure in figures(section)),
        )


def _shown(anchor: str, figure: Figure | Missing) -> Shown | Missing:
    if isinstance(figure, Missing):
        return figure
    several = len(figure.panels) > 1
    return Shown(
        figure,
        tuple(
            Picture(
                f"{anchor}_{figure.name}{f'_{number}' if several else ''}.png",
                draw(panel),
                f"{figure.title}{f', picture {number} of {len(figure.panels)}' if several else ''}. {figure.sentence}",
            )
            for number, panel in enumerate(figure.panels, start=1)
        ),
    )


def _pictures(parts: Sequence[Part]) -> Iterator[Picture]:
    for part in parts:
        for shown in (part.headline, *part.figures):
            if isinstance(shown, Shown):
                yield from shown.pictures


def _intro(found: Sequence[Section]) -> str:
    """What is compared, in a sentence."""
    by_owner: dict[str, set[tuple[str, str, str]]] = {}
    for section in found:
        for m in section.methods:
            owner = "no toolkit" if m.kind == "fp32" else m.owner
            by_owner.setdefault(owner, set()).add((m.method, repr(sorted(m.options.items())), str(m.asked_loss)))
    counts = ", ".join(
        f"{len(methods)} {'without a toolkit' if owner == 'no toolkit' else f'of {owner}'}"
        for owner, methods in by_owner.items()
    )
    seeds = sorted({seed for section in found for seed in section.seeds})
    total = sum(map(len, by_owner.values()))
    return (
        f"{plural(total, 'method')} ({counts or 'none'}) on {' and '.join(s.name for s in found)}; "
        f"{plural(len(seeds), 'seed')}. Accuracy is that of the model restored from the file."
    )


def _together(text: str) -> str:
    """Numbers stay on the line of their units."""
    return re.sub(r"(?<=\d) (?=(?:[kMG]?B|%|points?|bits?)\b|%|±)|(?<=±) ", "\u00a0", text)


def _versions(results: Sequence[TrainingResult | MethodResult]) -> list[tuple[str, str]]:
    versions: dict[str, set[str]] = {}
    for result in results:
        for name, version in result.versions.items():
            versions.setdefault(name, set()).add(version)
    return [(name, " and ".join(sorted(versions[name]))) for name in sorted(versions, key=str.casefold)]


def _markdown(context: dict[str, Any]) -> str:
    """The tables and sentences of the page."""
    blocks = ["# Comparison", escaped(context["intro"])]
    for part in context["parts"]:
        blocks.append(f"## {escaped(part.section.name)}")
        for item in (part.headline, part.all_methods, part.paper, *part.figures):
            if isinstance(item, Shown):
                title = escaped(item.figure.title)
                blocks += [f"### {title}", escaped(f"{item.figure.sentence} {item.figure.more}")]
                blocks += [f"![{title}]({picture.file})" for picture in item.pictures]
            elif isinstance(item, Missing):
                blocks += [f"### {escaped(item.title)}", escaped(f"Not in these results; it needs {item.needs}.")]
            else:
                blocks += [f"### {escaped(item.title)}", markdown(item)]
    blocks += ["## How it was measured"]
    for table in (context["settings"], context["options"]):
        blocks += [f"### {escaped(table.title)}", markdown(table)]
    versions = ", ".join(f"{name} {version}" for name, version in context["versions"])
    blocks.append(escaped(f"Versions: {versions}."))
    blocks.append(f"From {plural(context['count'], 'result')} (SHA-256 {context['digest']}), by `ilwp report DIR`.")
    return "\n\n".join(blocks) + "\n"
