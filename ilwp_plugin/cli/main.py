"""The application, and the way that errors leave it."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from ilwp_plugin import __version__
from ilwp_plugin.cli import compare, console, demo, files, launch, study
from ilwp_plugin.cli.console import errors
from ilwp_plugin.errors import IlwpError, IlwpWarning

__all__ = ["app", "run"]

app = typer.Typer(
    name="ilwp",
    help="Inter-Layer Weight Prediction: convolutional networks in a file that is really small.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from ilwp_plugin.toolkits import versions

        typer.echo("\n".join([f"ilwp-plugin {__version__}", *(f"{name} {own}" for name, own in versions().items())]))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the versions of ilwp and of the toolkits found."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only errors, warnings, and what --json asks for.")
    ] = False,
) -> None:
    console.be_quiet(quiet)


app.command()(files.compress)
app.command()(files.decompress)
app.command()(files.inspect)
app.command()(files.verify)
app.command()(files.align)
app.command()(study.estimate)
app.command()(study.analyze)
app.command()(study.schema)
app.command()(demo.demo)
app.command()(compare.compare)
app.command()(compare.report)
app.command(context_settings={"allow_interspersed_args": False})(launch.run)


def run() -> None:
    """Entry point. Exit codes: 0, done; 1, an error of ours, one line on stderr; 2, wrong usage; 130, interrupted."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, IlwpWarning):
            errors.print(f"ilwp: warning: {message}", markup=False, soft_wrap=True, highlight=False)
        else:
            shown(message, category, *place, **more)

    warnings.showwarning = show
    # torch's, of its own code, at each copy of an exported program
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
    try:
        app()
    except IlwpError as error:
        errors.print(f"ilwp: error: {' '.join(str(error).split())}", markup=False, soft_wrap=True, highlight=False)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "scipy"):
            raise
        errors.print(
            f"ilwp: error: this command needs {error.name}, which is not installed: pip install 'ilwp-plugin[torch]'",
            markup=False,
            soft_wrap=True,
            highlight=False,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `ilwp ... | head` is no error
        sys.stderr.close()
        sys.exit(0)
