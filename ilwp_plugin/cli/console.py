"""What the commands share: consoles, configuration options, tables, progress bars."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

if TYPE_CHECKING:
    from ilwp_plugin.config import IlwpConfig

__all__ = ["be_quiet", "errors", "make_config", "output", "print_json", "progress_bar", "table"]

output = Console(markup=False, highlight=False)  # names of tensors and files are shown as they are
errors = Console(stderr=True)

Config = Annotated[Path | None, typer.Option("--config", help="JSON file; see `ilwp schema`. Options override it.")]
Preset = Annotated[
    str | None,
    typer.Option(help="Other defaults: small (every weight, as far as is safe), paper (chains only), lossless."),
]
Recipes = Annotated[
    list[str] | None, typer.Option("--recipe", help="Use this recipe instead; may be repeated, in order of precedence.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=JSON",
        help="Any field of the configuration; with --recipe its options, RECIPE.FIELD=JSON where there are several.",
    ),
]
Mode = Annotated[str | None, typer.Option(help="Prediction mode: none, full, local, collocated, auto.")]
Bits = Annotated[int | None, typer.Option(help="Bits of a residual code, 2 to 8.")]
Scope = Annotated[str | None, typer.Option(help="depthwise (default), or conv: every kernel larger than 1x1.")]
Anchor = Annotated[str | None, typer.Option(help="Storage of a chain's first layer: fp32, fp16, quantized.")]
Range = Annotated[str | None, typer.Option("--range", help="Step of the quantizer: max (default), percentile, mse.")]
Coder = Annotated[str | None, typer.Option(help="Entropy coder: auto (default), huffman, ans.")]
Targets = Annotated[list[str] | None, typer.Option("--target-scope", help="Take only this layer; may be repeated.")]
Ignored = Annotated[list[str] | None, typer.Option("--ignored-scope", help="Leave out this layer; may be repeated.")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="Layers in order of prediction; repeat for each.")]
WeightStep = Annotated[float | None, typer.Option(help="Step of all other weights.")]
ResidualStep = Annotated[float | None, typer.Option(help="One step of all residuals, instead of bits and range.")]
BatchNorm = Annotated[str | None, typer.Option(help="exact, or merged: one scale and shift a channel.")]
BatchNormEps = Annotated[float | None, typer.Option(help="The eps of the batch norms, which merging needs.")]
Key = Annotated[str | None, typer.Option(help="Which state dict of a checkpoint with several (a.b: b inside a).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def make_config(
    file: Path | None, recipes: Sequence[str] | None = None, settings: Sequence[str] | None = None, **options: Any
) -> IlwpConfig:
    """The configuration of a file, or the default one, with the options that were given.

    Args:
        file: the file.
        recipes: names of recipes, instead of those of the file.
        settings: of the configuration, or of these recipes; see `Settings`.
        options: fields by name; None where an option was not given.

    Raises:
        ConfigError: a field or a value is wrong.
        FileError: the file cannot be read.
    """
    from ilwp_plugin import strict_json
    from ilwp_plugin.config import IlwpConfig
    from ilwp_plugin.errors import ConfigError

    values: dict[str, Any] = {}
    if file is not None:
        IlwpConfig.from_file(file)  # whose errors name the file
        values = dict(strict_json.load(file))
    values.update({name: value for name, value in options.items() if value is not None})
    chosen: dict[str, dict[str, Any]] = {name: {"name": name} for name in recipes or ()}
    for setting in settings or ():
        field, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: expected FIELD=JSON")
        try:
            value = strict_json.loads(text)
        except ValueError:
            value = text  # words need no quotation marks
        if not chosen:
            values[field] = value
            continue
        name, dot, option = field.partition(".")
        if not dot:
            name, option = next(iter(chosen)), field
        if name not in chosen or (not dot and len(chosen) > 1):
            raise ConfigError(f"--set {setting}: expected RECIPE.FIELD=JSON, with one of {', '.join(chosen)}")
        chosen[name][option] = value
    if chosen:
        values["recipes"] = list(chosen.values())
    return IlwpConfig.from_dict(values)


def print_json(value: Any) -> None:
    """JSON on stdout, and nothing else."""
    typer.echo(json.dumps(value, indent=1))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, as wide as that at most; all columns but the first are numbers.

    Numbers and heads are never cut: long names go on over several lines, and columns that do not fit follow in a table
    of their own.
    """
    heads = [column if number == 0 else column.replace(" ", "\n") for number, column in enumerate(columns)]
    shown: list[int] = []
    output.print(title, soft_wrap=True)
    for number in range(1, len(columns)):
        if shown and _width(heads, rows, [*shown, number]) > output.width:
            output.print(_part(heads, rows, shown))
            shown = []
        shown.append(number)
    output.print(_part(heads, rows, shown))


_NAME = 24
"""Columns that a name gets at least."""


def _part(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int], room: int = 0) -> Table:
    """The first column, in the room that is left for it, and some of the others."""
    part = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    part.add_column(heads[0], overflow="fold", max_width=room or None)
    for number in numbers:
        part.add_column(heads[number], justify="right", no_wrap=True, min_width=_cells(heads, rows, number))
    for row in rows:
        part.add_row(row[0], *(row[number] for number in numbers))
    return part


def _cells(heads: Sequence[str], rows: Sequence[Sequence[str]], number: int) -> int:
    return max(cell_len(line) for text in (heads[number], *(row[number] for row in rows)) for line in text.split("\n"))


def _width(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> int:
    """Of a table in which names have no more room than they need."""
    part = _part(heads, rows, numbers, room=min(_NAME, _cells(heads, rows, 0)))
    return Measurement.get(output, output.options.update(max_width=1 << 16), part).maximum


def be_quiet(quiet: bool) -> None:
    """Whether results for people, and progress, are left out; errors, warnings and JSON are not."""
    output.quiet = quiet


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Progress on stderr; yields a function (what, done, total) that tells it.

    On a terminal there are bars, with the time that is left; one that is full goes away. Elsewhere what takes long says
    how far it is, and how long it will take, now and then; where nobody looks, in CI and with --quiet, nothing is said.
    """
    if output.quiet or os.environ.get("CI", "").casefold() in ("1", "true"):
        yield lambda what, done, total: None
        return
    if not errors.is_terminal:
        yield _Reports().tell
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def move(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, visible=done < total)

        yield move


class _Reports:
    """Lines instead of bars."""

    EVERY = 20.0
    """Seconds between two lines."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._begun: dict[str, float] = {}
        self._open: dict[str, tuple[int, int]] = {}

    def tell(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        begun = self._begun.setdefault(what, now)
        self._open[what] = (done, total)
        if done >= total:
            del self._open[what]
        elif now - self._last >= self.EVERY:
            self._last = now
            stand = "; ".join(f"{name}: {some:,} of {all_:,}" for name, (some, all_) in self._open.items())
            left = f", about {_duration((now - begun) * (total - done) / done)} left for {what}" if done else ""
            errors.print(f"ilwp: {stand}{left}", markup=False, soft_wrap=True, highlight=False)


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
