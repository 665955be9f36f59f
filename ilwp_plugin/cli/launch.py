"""Run a training script with ilwp registered."""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from ilwp_plugin.cli.console import errors
from ilwp_plugin.errors import FileError, IlwpError

__all__ = ["run"]


def run(
    script: Annotated[str, typer.Argument(help="A Python script; with -m the name of a module.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its own arguments.", show_default=False)] = None,
    module: Annotated[bool, typer.Option("-m", help="Run a module, as `python -m` does.")] = False,
    toolkits: Annotated[
        list[str] | None,
        typer.Option("--toolkit", help="Register with this one only (nncf, ...); may be repeated."),
    ] = None,
) -> None:
    """Run a training script as it is, with ilwp registered in every installed toolkit.

    What it says of ilwp in its own configuration is then understood. Options of ilwp come before SCRIPT.
    """
    if not module and not Path(script).exists():
        raise FileError(f"no script {script!r}; with -m it would be the name of a module")
    from ilwp_plugin.toolkits import register_installed

    registered = register_installed(toolkits or ())
    if None not in registered.values():
        absent = "; ".join(f"{name}: {reason}" for name, reason in registered.items())
        errors.print(f"ilwp: warning: registered with no toolkit ({absent})", markup=False, highlight=False)
    sys.argv = [script, *(arguments or [])]
    sys.path.insert(0, str(Path.cwd() if module else Path(script).resolve().parent))
    try:
        if module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    except IlwpError:  # the script's own place matters, as under `python`
        traceback.print_exc()
        raise typer.Exit(1) from None
