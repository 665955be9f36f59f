"""What the commands share: consoles, configuration options, tables, progress bars."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ilwp_plugin import IlwpConfig

__all__ = ["errors", "make_config", "output", "print_json", "progress_bar", "table"]

output = Console(markup=False, highlight=False)  # names of tensors and files are shown as they are
errors = Console(stderr=True)

Config = Annotated[Path | None, typer.Option("--config", help="JSON file; see `ilwp schema`. Options override it.")]
Mode = Annotated[str | None, typer.Option(help="Prediction mode: none, full, local, collocated (default), auto.")]
Bits = Annotated[int | None, typer.Option(help="Bits of a residual code, 2 to 8 (default 8).")]
Scope = Annotated[str | None, typer.Option(help="depthwise (default), or conv: every kernel larger than 1x1.")]
Anchor = Annotated[str | None, typer.Option(help="Storage of a chain's first layer: fp32 (default), fp16, quantized.")]
Range = Annotated[str | None, typer.Option("--range", help="Step of the quantizer: max (default), percentile, mse.")]
Coder = Annotated[str | None, typer.Option(help="Entropy coder: auto (default), huffman, ans.")]
Targets = Annotated[list[str] | None, typer.Option("--target-scope", help="Take only this layer; may be repeated.")]
Ignored = Annotated[list[str] | None, typer.Option("--ignored-scope", help="Leave out this layer; may be repeated.")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="Layers in order of prediction; repeat for each.")]
WeightStep = Annotated[float | None, typer.Option(help="Step of all other weights; none keeps them as they are.")]
ResidualStep = Annotated[float | None, typer.Option(help="One step of all residuals, instead of bits and range.")]
BatchNorm = Annotated[str | None, typer.Option(help="exact (default), or merged: one scale and shift a channel.")]
BatchNormEps = Annotated[float | None, typer.Option(help="The eps of the batch norms, which merging needs.")]
Key = Annotated[str | None, typer.Option(help="Which state dict of a checkpoint with several (a.b: b inside a).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def make_config(file: Path | None, **options: Any) -> IlwpConfig:
    """The configuration of a file, or the default one, with the options that were given."""
    config = IlwpConfig.from_file(file) if file is not None else IlwpConfig()
    return config.replace(**{name: value for name, value in options.items() if value is not None})


def print_json(value: Any) -> None:
    """JSON on stdout, and nothing else."""
    typer.echo(json.dumps(value, indent=1))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; all columns but the first are numbers."""
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    output.print(shown)


def ledger_row(ledger: Mapping[str, int]) -> list[str]:
    """The sizes of a ledger, for a table with the columns LEDGER_COLUMNS."""
    return [f"{ledger[column.replace('-', '_') + '_bytes']:,}" for column in LEDGER_COLUMNS]


LEDGER_COLUMNS = (
    "texture",
    "non-texture",
    "table",
    "anchor",
    "header",
    "total",
    "grid",
    "batch-norm",
    "other",
    "file",
)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, where that is a terminal; yields a function (what, done, total) to move it.

    A bar that is full goes away.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def move(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, visible=done < total)

        yield move
