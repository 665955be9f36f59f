"""Files in and out: compress, decompress, inspect, verify.

What needs torch is imported where it is used: it takes seconds, and help, refusals and the reading of files need none.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ilwp_plugin.cli import console as ui
from ilwp_plugin.cli.console import output
from ilwp_plugin.errors import FileError
from ilwp_plugin.paths import check_regular, untrusted

Input = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="A checkpoint (.safetensors, .pt, .ckpt, .bin), a model (.onnx, .xml), or a torch.export program (.pt2).",
    ),
]
IlwpFile = Annotated[Path, typer.Argument(metavar="X.ilwp", help="An .ilwp file.")]
MaxBytes = Annotated[int | None, typer.Option(help="Refuse a file whose tensors take more memory than this.")]


def compress(
    source: Input,
    out: Annotated[Path, typer.Option("-o", "--output", help="The .ilwp file to write.")],
    config: ui.Config = None,
    preset: ui.Preset = None,
    recipes: ui.Recipes = None,
    settings: ui.Settings = None,
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
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="The most that the score may fall; finds the smallest file. Without --evaluate the score is 100 times "
            "the cosine of the outputs on a fifth of the calibration inputs, which is held back: 4 is a cosine of .96."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Inputs, without labels, of an .onnx or .pt2 model: an .npz file with an array for each, a folder of "
            "images, or module:function, which is called. Files are several times smaller at about the same outputs."
        ),
    ] = None,
    pixels: Annotated[
        str | None,
        typer.Option(help="How the model takes the pixels of images: 0..1, -1..1, 0..255, imagenet (torchvision's)."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Of images, where the model takes any.")] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="module:function that scores a model, more is better; it gets an InferenceSession of an .onnx model, "
            "a module of a .pt2."
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read IN.pt2 although that can run code of whoever made it.")
    ] = False,
    key: ui.Key = None,
    as_json: ui.Json = False,
) -> None:
    """Make a model small: one .ilwp file that restores all of it.

    Without options every weight goes on a grid that loses no more than 8-bit integers do.
    """
    check_regular(source)
    if out.exists() and out.samefile(source):
        raise FileError(f"cannot write {out}: it is the input")
    chosen = ui.make_config(
        config,
        recipes,
        settings,
        preset=preset,
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
    from ilwp_plugin.cli.opening import calibration_of, open_source
    from ilwp_plugin.cli.showing import report_of, sentence
    from ilwp_plugin.pipeline.compress import compress as compress_model
    from ilwp_plugin.pipeline.fidelity import weights_snr

    network, shapes = open_source(source, chosen, key, trust)
    given = calibration_of(network, shapes, calibration, pixels, size, max_drop, evaluate)
    before = network.source_bytes or source.stat().st_size
    with ui.progress_bar() as report:
        model = compress_model(
            network,
            chosen,
            calibration=given.inputs,
            evaluate=given.evaluate,
            max_drop=max_drop,
            target_bytes=target_bytes,
            target_bits_per_weight=target_bits_per_weight,
            progress=lambda what, done, total: report("trials" if what.startswith("trial") else "kernels", done, total),
        )
    model.save(out)
    snr = weights_snr(network.state, model)
    cosine = given.cosine(network, model)
    if as_json:
        measured = {"weights_snr_db": snr} | ({} if cosine is None else {"outputs_cosine": cosine})
        ui.print_json({**report_of(model), "file": str(out), "source_bytes": before, **measured})
        return
    said = sentence(
        model, before, snr, None if cosine is None else f"outputs at a cosine of {cosine:.4f} {given.where}"
    )
    output.print(f"{source} ({before:,} bytes) -> {out}: {said}", soft_wrap=True)


def decompress(
    source: IlwpFile,
    out: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors, .onnx or .xml file to write.")],
    max_bytes: MaxBytes = None,
) -> None:
    """Restore an .ilwp file: the tensors of any as .safetensors, an ONNX model as .onnx, one of OpenVINO as .xml."""
    from ilwp_plugin import toolkits

    if out.suffix != ".safetensors":
        write = toolkits.for_file(out, "restore_model")
        if write is None:
            known = ", ".join([".safetensors", *toolkits.suffixes()])
            raise typer.BadParameter(f"{out} has to end in one of {known}", param_hint="--output")
        if out.exists() and out.samefile(source):
            raise FileError(f"cannot write {out}: it is the input")
        write(source, out, max_bytes=max_bytes)
        output.print(f"{out}: {out.stat().st_size:,} bytes", soft_wrap=True)
        return
    from ilwp_plugin.format import read
    from ilwp_plugin.format.safetensors import write_safetensors

    count = write_safetensors(out, read(source, max_bytes=max_bytes))
    output.print(f"{out}: {count} tensors", soft_wrap=True)


def inspect(source: IlwpFile, as_json: ui.Json = False) -> None:
    """Show what an .ilwp file holds and what each part costs."""
    from ilwp_plugin.cli.showing import report_of, show
    from ilwp_plugin.format import read

    file = read(source)
    if as_json:
        ui.print_json({**report_of(file), "file": str(source)})
    else:
        show(file, str(source))


def verify(source: IlwpFile, max_bytes: MaxBytes = None) -> None:
    """Check every checksum and decode everything; exit code 1 if the file is damaged."""
    from ilwp_plugin.format import read

    file = read(source, max_bytes=max_bytes)
    for name in file.names:
        file.tensor(name, as_bits=True, copy=False)
    output.print(f"{source}: good; {len(file.infos)} tensors, {file.ledger.file_bytes:,} bytes", soft_wrap=True)


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
    check_regular(source)
    if not trust:
        raise FileError(untrusted(source))
    chosen = ui.make_config(config, bits=bits, anchor=anchor, range=step_range, coder=coder)
    from ilwp_plugin import toolkits
    from ilwp_plugin.models import exported
    from ilwp_plugin.pipeline.compress import compress as compress_model

    program = exported.read_program(source, trust=trust)
    model, inputs = exported.layers_of_program(program), exported.example_inputs_of(program)
    before = compress_model(model, chosen, example_inputs=inputs).ledger.total_bytes
    report = toolkits.load("pruning").align(model, inputs, chosen)
    compressed = compress_model(model, chosen, example_inputs=inputs)
    if out.suffix == ".pt2":
        exported.load_into_program(program, model.state_dict())
        exported.write_program(program, out)
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
