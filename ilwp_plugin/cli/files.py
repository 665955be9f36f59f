"""Files in and out: compress, decompress, inspect, verify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import ilwp_plugin
from ilwp_plugin import toolkits
from ilwp_plugin.cli import console as ui
from ilwp_plugin.cli.console import LEDGER_COLUMNS, ledger_row, output
from ilwp_plugin.errors import FileError
from ilwp_plugin.format.sections import Summary
from ilwp_plugin.ledger import PARTS, LayerBytes
from ilwp_plugin.models.exported import (
    example_inputs_of,
    layers_of_program,
    load_into_program,
    read_program,
    write_program,
)
from ilwp_plugin.models.weights import read_state_dict, write_safetensors
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.pipeline.quantize import few

Input = Annotated[
    Path,
    typer.Argument(metavar="IN", help="A .safetensors file, or one of torch.save (.pt, .ckpt, .bin)."),
]
IlwpFile = Annotated[Path, typer.Argument(metavar="X.ilwp", help="An .ilwp file.")]
MaxBytes = Annotated[int | None, typer.Option(help="Refuse a file whose tensors take more memory than this.")]


def compress(
    source: Input,
    out: Annotated[Path, typer.Option("-o", "--output", help="The .ilwp file to write.")],
    config: ui.Config = None,
    mode: ui.Mode = None,
    bits: ui.Bits = None,
    scope: ui.Scope = None,
    anchor: ui.Anchor = None,
    step_range: ui.Range = None,
    coder: ui.Coder = None,
    target_scopes: ui.Targets = None,
    ignored_scopes: ui.Ignored = None,
    layers: ui.Layers = None,
    weight_step: ui.WeightStep = None,
    residual_step: ui.ResidualStep = None,
    batch_norm: ui.BatchNorm = None,
    batch_norm_eps: ui.BatchNormEps = None,
    target_bytes: Annotated[int | None, typer.Option(help="The most that the file may take; finds the steps.")] = None,
    target_bits_per_weight: Annotated[
        float | None, typer.Option(help="The same, in bits of the file for each element of the state dict.")
    ] = None,
    key: ui.Key = None,
    as_json: ui.Json = False,
) -> None:
    """Compress a state dict into one .ilwp file that restores all of it."""
    chosen = ui.make_config(
        config,
        mode=mode,
        bits=bits,
        scope=scope,
        anchor=anchor,
        range=step_range,
        coder=coder,
        target_scopes=target_scopes,
        ignored_scopes=ignored_scopes,
        layers=layers,
        weight_step=weight_step,
        residual_step=residual_step,
        batch_norm=batch_norm,
        batch_norm_eps=batch_norm_eps,
    )
    state = read_state_dict(source, key, mapped=True)
    if out.exists() and out.samefile(source):
        raise FileError(f"cannot write {out}: it is the input")
    before = source.stat().st_size
    with ui.progress_bar() as report:
        model = ilwp_plugin.compress(
            state,
            chosen,
            target_bytes=target_bytes,
            target_bits_per_weight=target_bits_per_weight,
            progress=lambda what, done, total: report("trials" if what.startswith("trial") else "kernels", done, total),
        )
    model.save(out)
    if as_json:
        ui.print_json({**_report(model), "file": str(out), "source_bytes": before})
        return
    _print(model, str(out))
    output.print(
        f"{source}: {before:,} bytes -> {out}: {model.ledger.file_bytes:,} bytes "
        f"({before / model.ledger.file_bytes:.2f} times smaller)",
        soft_wrap=True,
    )


def decompress(
    source: IlwpFile,
    out: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    max_bytes: MaxBytes = None,
) -> None:
    """Restore the state dict of an .ilwp file as .safetensors."""
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out} has to end in .safetensors", param_hint="--output")
    restored = ilwp_plugin.load(source, max_bytes=max_bytes).state_dict()
    write_safetensors(restored, out)
    output.print(f"{out}: {len(restored)} tensors", soft_wrap=True)


def inspect(source: IlwpFile, as_json: ui.Json = False) -> None:
    """Show what an .ilwp file holds and what each part costs."""
    model = ilwp_plugin.load(source)
    if as_json:
        ui.print_json({**_report(model), "file": str(source)})
    else:
        _print(model, str(source))


def verify(source: IlwpFile, max_bytes: MaxBytes = None) -> None:
    """Check every checksum and decode everything; exit code 1 if the file is damaged."""
    model = ilwp_plugin.load(source, max_bytes=max_bytes)
    output.print(f"{source}: good; {len(model.tensors)} tensors, {model.ledger.file_bytes:,} bytes", soft_wrap=True)


def align(
    source: Annotated[Path, typer.Argument(metavar="IN.pt2", help="A torch.export program, saved with its inputs.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The aligned program (.pt2), or its .ilwp file.")],
    config: ui.Config = None,
    bits: ui.Bits = None,
    anchor: ui.Anchor = None,
    step_range: ui.Range = None,
    coder: ui.Coder = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read IN.pt2 although that can run code of whoever made it.")
    ] = False,
    as_json: ui.Json = False,
) -> None:
    """Permute, flip and scale channels of a network so that prediction fits; it computes the same as before."""
    if out.suffix not in {".pt2", ".ilwp"}:
        raise typer.BadParameter(f"{out} has to end in .pt2 or .ilwp", param_hint="--output")
    chosen = ui.make_config(config, bits=bits, anchor=anchor, range=step_range, coder=coder)
    program = read_program(source, trust=trust)
    model, inputs = layers_of_program(program), example_inputs_of(program)
    before = ilwp_plugin.estimate(model, chosen, example_inputs=inputs).total_bytes
    report = toolkits.load("pruning").align(model, inputs, chosen)
    compressed = ilwp_plugin.compress(model, chosen, example_inputs=inputs)
    if out.suffix == ".pt2":
        load_into_program(program, model.state_dict())
        write_program(program, out)
    else:
        compressed.save(out)
    after = compressed.ledger.total_bytes
    if as_json:
        ui.print_json({**asdict(report), "total_bytes": after, "total_bytes_before": before, "file": str(out)})
        return
    for layer, reason in report.refused.items():
        output.print(f"{layer}: not permuted: {reason}", markup=False, soft_wrap=True)
    output.print(
        f"{out}: {len(report.aligned)} layers aligned, outputs changed by {report.change:.1e}; compressed layers "
        f"{before:,} -> {after:,} bytes",
        soft_wrap=True,
    )


def _report(model: CompressedModel) -> dict[str, Any]:
    """The ledger, with a description of each compressed layer; `tensors` are the bytes of all the others."""
    ledger = model.ledger
    by_layer = ledger.layers
    layers = {
        layer.name: {
            "kind": layer.kind,
            "shape": list(layer.shape),
            **layer.details,
            **_bytes(layer, by_layer).to_dict(),
        }
        for layer in model.layers
        if layer.kind != "raw"
    }
    tensors = {name: parts.file_bytes for name, parts in by_layer.items() if name not in layers}
    report = {**ledger.whole.to_dict(), "layers": layers, "tensors": tensors, "metadata": model.metadata}
    return {**report, "left": model.left} if model.left else report


def _bytes(layer: Summary, by_layer: Mapping[str, LayerBytes]) -> LayerBytes:
    """What all tensors of a layer take."""
    names = layer.details.get("tensors", [layer.name])
    sizes: dict[str, int] = {}
    for name in names:
        for part, count in (by_layer[name].to_dict() if name in by_layer else {}).items():
            sizes[part] = sizes.get(part, 0) + count
    return LayerBytes(**{f"{part}_bytes": sizes.get(f"{part}_bytes", 0) for part in PARTS})


_COLUMNS: dict[str, list[str]] = {
    "chain": ["kernels", "mode", "bits", "step", "zeros", "entropy"],
    "grid": ["step", "zeros", "entropy"],
    "batch_norm": ["channels", "mantissa_bits", "shift_step"],
}
"""What is shown of each kind; of other kinds everything."""


def _print(model: CompressedModel, title: str) -> None:
    by_layer = model.ledger.layers
    kinds = dict.fromkeys(layer.kind for layer in model.layers if layer.kind != "raw")
    for kind in kinds:
        layers = [layer for layer in model.layers if layer.kind == kind]
        columns = _COLUMNS.get(kind) or list(dict.fromkeys(key for layer in layers for key in layer.details))
        rows = [
            [
                layer.name,
                "x".join(map(str, layer.shape)),
                *(_cell(layer.details.get(column)) for column in columns),
                f"{_bytes(layer, by_layer).file_bytes:,}",
            ]
            for layer in layers
        ]
        heads = ["layer", "shape", *(column.replace("_", " ") for column in columns), "bytes"]
        ui.table(f"{kind.replace('_', ' ')} (entropy in bits a value)" if "entropy" in columns else kind, heads, rows)
    if model.left:
        reasons: dict[str, list[str]] = {}
        for layer_name, reason in model.left.items():
            reasons.setdefault(reason, []).append(layer_name)
        for reason, names in reasons.items():
            output.print(f"stored as they are, {reason}: {few(names, 20)}", markup=False, soft_wrap=True)
    ui.table("bytes", ["", *LEDGER_COLUMNS], [[title, *ledger_row(model.ledger.whole.to_dict())]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
