"""Comparisons: compare, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ilwp_plugin import strict_json
from ilwp_plugin.cli import console as ui
from ilwp_plugin.cli.console import output
from ilwp_plugin.errors import FileError
from ilwp_plugin.paths import check_regular

FILE = "results.jsonl"


def compare(
    config: Annotated[Path, typer.Argument(help="JSON file: data, networks, seeds, methods.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for results, networks, files and the report.")],
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that other processes and machines work on, too.")
    ] = None,
    data_folder: Annotated[Path | None, typer.Option(help="Folder with the data sets' files.")] = None,
    workers: Annotated[int | None, typer.Option(help="Tasks at a time; one for each core by default.")] = None,
    threads: Annotated[int, typer.Option(help="Of each task.")] = 1,
    device: Annotated[str, typer.Option(help="Where networks are trained and fine-tuned, such as cuda.")] = "cpu",
) -> None:
    """Compare ilwp with the toolkits' built-in methods: bytes, accuracy, time and memory, and a report.

    Stopped or killed, and started again, it goes on where it was.
    """
    check_regular(config)
    strict_json.load(config)  # what is no JSON is refused at once
    from ilwp_plugin import compare as job

    settings = job.CompareConfig.from_file(config)
    with ui.progress_bar() as report:
        results = job.compare(
            settings,
            out,
            storage=storage,
            data_folder=data_folder,
            workers=workers,
            threads=threads,
            device=device,
            report=report,
        )
    output.print(f"{len(results)} results in {out / FILE}", soft_wrap=True)
    output.print(f"the report is {job.build_report(out)}", soft_wrap=True)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the results.jsonl of a comparison.")],
) -> None:
    """Build the report of a comparison again, from its results.jsonl alone.

    Writes report.html, which needs nothing else, its pictures as PNG, and its tables as tables.md.
    """
    if not (folder / FILE).is_file():
        raise FileError(f"{folder / FILE}: no results; make some with `ilwp compare CONFIG -o {folder}`")
    from ilwp_plugin.compare.report import build_report

    output.print(f"the report is {build_report(folder)}", soft_wrap=True)
