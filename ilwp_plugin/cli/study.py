"""Without writing a model: estimate, analyze, schema."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from ilwp_plugin.cli import console as ui
from ilwp_plugin.cli.console import output
from ilwp_plugin.cli.files import Input
from ilwp_plugin.errors import IlwpWarning
from ilwp_plugin.paths import check_regular


def estimate(
    source: Input,
    config: ui.Config = None,
    scope: ui.Scope = None,
    anchor: ui.Anchor = None,
    step_range: ui.Range = None,
    coder: ui.Coder = None,
    target_scopes: ui.Targets = None,
    ignored_scopes: ui.Ignored = None,
    layers: ui.Layers = None,
    key: ui.Key = None,
    as_json: ui.Json = False,
) -> None:
    """Exact sizes of the file in every mode at 2 to 8 bits, without writing it."""
    check_regular(source)
    base = ui.make_config(
        config,
        scope=scope,
        anchor=anchor,
        range=step_range,
        coder=coder,
        target_scopes=target_scopes,
        ignored_scopes=ignored_scopes,
        layers=layers,
    )
    from ilwp_plugin.method.prediction import PREDICTORS
    from ilwp_plugin.method.quantization import BITS
    from ilwp_plugin.models.weights import read_state_dict
    from ilwp_plugin.pipeline.estimates import estimates

    state = read_state_dict(source, key, mapped=True)
    grid = [(mode, bits) for mode in PREDICTORS for bits in BITS]
    sizes: list[dict[str, int]] = []
    with ui.progress_bar() as report, warnings.catch_warnings():
        warnings.simplefilter("ignore", IlwpWarning)  # few bits are worse than zeros for some layers; none is chosen
        ledgers = estimates(state, base, grid, lambda _, done, total: report(_named(grid[len(sizes)]), done, total))
        for ledger in ledgers:
            sizes.append(ledger.whole.to_dict())
            report("estimates", len(sizes), len(grid))
    if as_json:
        rows = zip(grid, sizes, strict=True)
        ui.print_json({"rows": [{"mode": mode, "bits": bits, **size} for (mode, bits), size in rows]})
        return
    parts = [part for part in sizes[0] if any(size[part] for size in sizes)]
    heads = ["mode", *(part.removesuffix("_bytes").replace("_", " ") for part in parts)]
    cells = [[_named(choice), *(f"{size[part]:,}" for part in parts)] for choice, size in zip(grid, sizes, strict=True)]
    ui.table(f"{source}: bytes by mode and bits", heads, cells)
    if all(size == sizes[0] for size in sizes):
        output.print("no two layers predict each other here, so modes and bits make no difference")


def _named(choice: tuple[str, int]) -> str:
    mode, bits = choice
    return f"{mode} {bits}"


def analyze(
    source: Input,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for the figures.")],
    config: ui.Config = None,
    scope: ui.Scope = None,
    target_scopes: ui.Targets = None,
    ignored_scopes: ui.Ignored = None,
    layers: ui.Layers = None,
    key: ui.Key = None,
    as_json: ui.Json = False,
) -> None:
    """Draw where the best references are (Fig. 2, 3) and how weights and residuals are distributed (Fig. 7)."""
    check_regular(source)
    chosen = ui.make_config(
        config, scope=scope, target_scopes=target_scopes, ignored_scopes=ignored_scopes, layers=layers
    )
    from ilwp_plugin import analysis
    from ilwp_plugin.models.weights import read_state_dict

    state = read_state_dict(source, key, mapped=True)
    with ui.progress_bar() as report:
        result = analysis.analyze({source.name: state}, out, chosen, report=report)
    if as_json:
        ui.print_json(result)
        return
    for size, models in result.items():
        for numbers in models.values():
            weights, residuals = (d["laplace_entropy_bits"] for d in numbers["distributions"])
            share = numbers["references"]["previous_layer_share"]
            if share is not None:
                output.print(f"{size} kernels: {share:.0%} of the best references are in the layer before")
            if weights is not None and residuals is not None:
                output.print(
                    f"{size} kernels: collocated residuals have {residuals - weights:+.2f} bits a weight against the "
                    "weights themselves (Laplace fits)"
                )
    output.print(f"figures and analysis.json are in {out}", soft_wrap=True)


def schema(
    toolkit: Annotated[
        str | None, typer.Option(help="As the configuration of this toolkit holds it (inc, ...).")
    ] = None,
) -> None:
    """Print the JSON schema of the configuration, for editors."""
    if toolkit is None:  # as it was when the package was made, so that it needs no torch
        content = resources.files("ilwp_plugin").joinpath("schema.json").read_text(encoding="utf-8")
        ui.print_json(json.loads(content))
        return
    from ilwp_plugin import toolkits

    with contextlib.redirect_stdout(sys.stderr):  # NNCF logs to stdout, into what may be a file
        found = toolkits.schema(toolkit)
    ui.print_json(found)
