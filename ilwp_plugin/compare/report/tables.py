"""The tables, as text in cells; the page and the Markdown file are made of the same ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ilwp_plugin.compare.report.figures import BITS, Missing, bits_of, mode_of, paper_methods
from ilwp_plugin.compare.report.summary import Section, Summary, pareto_front
from ilwp_plugin.compare.report.text import bytes_and_deviation, percent

__all__ = ["Row", "Table", "baselines_table", "escaped", "markdown", "methods_table", "paper_table", "settings_table"]

_FEW = 12
"""Methods of ilwp that are all shown at once."""


@dataclass(frozen=True)
class Row:
    """Cells of one line; `marked` ones are those that the headline speaks of."""

    cells: tuple[str, ...]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: their heads, with units.
        text: how many of them, from the left, are text; the others are numbers.
        rows: what is shown at once.
        more: further rows, shown on demand.
    """

    title: str
    columns: tuple[str, ...]
    text: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    more: tuple[Row, ...] = ()


def baselines_table(section: Section, marked: Sequence[Summary] = ()) -> Table:
    """Sizes, accuracy, time and memory of all methods, the toolkits' before ilwp's.

    Of many methods of ilwp only those on their Pareto front, and the marked ones, are shown at once.
    """
    ours = [m for m in section.methods if m.kind == "ilwp"]
    front = {ours[i].title for i in pareto_front([(m.file.mean, m.accuracy.mean) for m in ours])}
    shown = front | {m.title for m in (ours if len(ours) <= _FEW else marked)}
    rows: list[Row] = []
    more: list[Row] = []
    for method in section.methods:
        row = Row(_baseline_cells(section, method), marked=any(method is m for m in marked))
        (rows if method.kind != "ilwp" or method.title in shown else more).append(row)
    apart = section.layers.rpartition(" ")[0]
    columns = (
        "whose",
        "method",
        "file, B",
        "of fp32",
        "accuracy, %",
        "change, points",
        f"{apart}, B",
        "raw, B",
        f"raw {apart}, B",
        "compression, s",
        "compression, MB",
        "loading, s",
        "loading, MB",
    )
    several = "Means over seeds, ± standard deviation over them. " if len(section.seeds) > 1 else ""
    notes = (
        f"{several}raw: the integers that the tool computes with, their scales and all else; file: on disk, everything "
        f"counted; {apart}: the part of the {section.layers}, where the file tells it apart. Accuracy is that of the "
        "model restored from the file; change: against fp32 trained without the loss, ± standard error; noise: less "
        "than two standard errors. MB: peak growth of memory.",
    )
    return Table("All methods", columns, 2, tuple(rows), notes, tuple(more))


def _baseline_cells(section: Section, method: Summary) -> tuple[str, ...]:
    change = method.change
    return (
        method.owner,
        method.title + _seeds(section, method),
        bytes_and_deviation(method.file),
        "-" if method.ratio is None else f"{method.ratio.mean:.4f}",
        percent(method.accuracy),
        f"{change.points:+.2f} ± {change.standard_error:.2f}{' noise' if change.noise else ''}",
        bytes_and_deviation(method.depthwise),
        bytes_and_deviation(method.raw),
        bytes_and_deviation(method.raw_depthwise),
        f"{method.compression_seconds.mean:.2f}",
        f"{method.compression_bytes.mean / 1e6:.1f}",
        f"{method.loading_seconds.mean:.3f}",
        f"{method.loading_bytes.mean / 1e6:.1f}",
    )


def paper_table(section: Section) -> Table | Missing:
    """Table 1 of the paper: its modes at 8 bits, collocated prediction with the loss; without it for comparison."""
    title = f"Table 1: prediction modes at {BITS} bits"
    methods = [m for m in paper_methods(section) if bits_of(m) == BITS and m.depthwise is not None]
    chosen: list[tuple[str, Summary]] = [
        (mode, m) for mode in ("none", "local", "full") for m in methods if mode_of(m) == mode and m.asked_loss == 0
    ]
    collocated = sorted((m for m in methods if mode_of(m) == "collocated"), key=lambda m: m.loss_weight)
    weights = {m.asked_loss for m in collocated}
    with_loss = [m for m in collocated if m.asked_loss == "auto" or (m.asked_loss != 0 and "auto" not in weights)]
    chosen += [(f"collocated, loss weight {m.loss_weight:.3g}", m) for m in with_loss]
    chosen += [("collocated, without the loss", m) for m in collocated if m.asked_loss == 0]
    if not any(mode == "none" for mode, _ in chosen) or not with_loss:
        needs = (
            '{"method": "ilwp", "grid": {"mode": ["none", "local", "full"]}} and '
            '{"method": "ilwp", "loss_weight": [0, "auto"]}'
        )
        return Missing(title, needs)
    none = next(m for mode, m in chosen if mode == "none").depthwise
    rows = [
        Row(
            (
                mode + _seeds(section, m),
                bytes_and_deviation(m.texture),
                bytes_and_deviation(m.non_texture),
                bytes_and_deviation(m.depthwise),
                "-" if m.depthwise is None or none is None else f"{m.depthwise.mean / none.mean:.3f}",
                bytes_and_deviation(m.file),
                percent(m.accuracy),
                percent(m.fp32),
            )
        )
        for mode, m in chosen
    ]
    columns = ("mode", "texture, B", "non-texture, B", "total, B", "of none", "file, B", "accuracy, %", "its fp32, %")
    notes = (
        f"texture: residuals; non-texture: indices of references; total: the {section.layers} with every table, step "
        "and name. its fp32: the network that was compressed, before.",
    )
    return Table(title, columns, 1, tuple(rows), notes)


def _seeds(section: Section, method: Summary) -> str:
    """Says so where some seeds are missing."""
    missing = len(section.seeds) - len(method.seeds)
    return f" ({len(method.seeds)} of {len(section.seeds)} seeds)" if missing else ""


def settings_table(sections: Sequence[Section]) -> Table:
    """How each network was trained and tested."""
    columns = (
        "network",
        "stem stride",
        "epochs",
        "batch",
        "seeds",
        "test images",
        "one point",
        "loss weights",
        "parameters",
    )
    rows = []
    for section in sections:
        network = section.network
        trained = {m.asked_loss: m.loss_weight for m in section.methods}
        trained |= {w: found[0].loss_weight for w, found in section.trainings.items()}
        weights = sorted(trained.items(), key=lambda item: (item[1], str(item[0])))
        parameters = next((t[0].parameters for t in section.trainings.values()), None)
        rows.append(
            Row(
                (
                    section.name,
                    str(network.stem_stride),
                    str(network.epochs),
                    str(network.batch),
                    ", ".join(map(str, section.seeds)),
                    f"{section.images:,}",
                    f"{section.images / 100:g} images",
                    ", ".join(
                        f"{asked} = {value:.3g}" if asked == "auto" else f"{value:.3g}" for asked, value in weights
                    ),
                    "-" if parameters is None else f"{parameters:,}",
                )
            )
        )
    return Table("Networks and data", columns, 1, tuple(rows))


def methods_table(sections: Sequence[Section]) -> Table:
    """What each method was told, once for all networks."""
    found = {(m.owner, m.method, json.dumps(m.options, sort_keys=True)) for s in sections for m in s.methods}
    rows = [Row((owner, name, options)) for owner, name, options in sorted(found)]
    return Table(
        "Options of the methods", ("whose", "method", "options; what is absent is the default"), 3, (), (), tuple(rows)
    )


def markdown(table: Table) -> str:
    """A table in Markdown, all rows, its notes beneath."""
    lines = [
        f"| {' | '.join(escaped(column) for column in table.columns)} |",
        f"| {' | '.join('---' if i < table.text else '---:' for i in range(len(table.columns)))} |",
    ]
    for row in (*table.rows, *table.more):
        cells = [escaped(cell) for cell in row.cells]
        lines.append(
            f"| {' | '.join(f'**{c}**' if row.marked and i < table.text else c for i, c in enumerate(cells))} |"
        )
    return "\n".join([*lines, *(f"\n{escaped(note)}" for note in table.notes)])


def escaped(text: str) -> str:
    """So that Markdown shows it as it is, in one line: no markup, no HTML, no link made of an address."""
    text = re.sub(r"([\\`*_\[\]<>|#&~$!])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?i)(https?|ftp)(?=://)|(www)(?=\.)|(?<=\S)(?=@\S)", lambda m: f"{m[0]}\\", text)
