"""The demo: Table 1 of the paper on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ilwp_plugin.cli import console as ui
from ilwp_plugin.cli.console import output

MODELS = "mobilenet, mobilenetv2, shufflenet, shufflenetv2, resnet20, vgg, lenet300, lenet5"


def demo(
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, cifar-10 or cifar-100.")] = "digits",
    data_folder: Annotated[Path | None, typer.Option(help="Folder with the data set's files.")] = None,
    model: Annotated[str | None, typer.Option(help=f"{MODELS}.")] = None,
    width: Annotated[float | None, typer.Option(help="Width multiplier.")] = None,
    stem_stride: Annotated[int | None, typer.Option(help="Stride of the first convolution.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Length of each of the two trainings.")] = None,
    batch: Annotated[int | None, typer.Option(help="Batch size.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and batches.")] = None,
    bits: ui.Bits = None,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path("out/demo"),
    as_json: ui.Json = False,
) -> None:
    """Train without and with the inter-layer loss, compress in every mode, and print Table 1 of the paper.

    What is not given is chosen for the data set.
    """
    from ilwp_plugin import demo as job

    settings = job.preset(
        data, model=model, width=width, stem_stride=stem_stride, epochs=epochs, batch=batch, seed=seed, bits=bits
    )
    with ui.progress_bar() as report:
        results = job.run_demo(settings, out, data_folder, report)
    if as_json:
        ui.print_json(results)
        return
    baseline = results["rows"][0]["total_bytes"]
    rows = []
    for row in [*results["rows"], results["collocated_without_loss"]]:
        rows.append(
            [
                row["method"] + (" + loss" if row["trained_with_loss"] else ""),
                f"{row['texture_bytes']:,}",
                f"{row['non_texture_bytes']:,}",
                f"{row['total_bytes']:,}",
                f"{row['total_bytes'] / baseline:.3f}",
                f"{row['file_bytes']:,}",
                f"{row['accuracy']:.2f}",
                f"{row['accuracy_fp32']:.2f}",
            ]
        )
    columns = ["method", "texture", "non- texture", "total", "ratio", "file", "accuracy", "fp32"]
    title = f"{settings.model} x{settings.width} on {data}, {settings.bits} bits; sizes in bytes, accuracy in %"
    ui.table(title, columns, rows)
    output.print(f"weight of the inter-layer loss: {results['loss_weight']:.3g} (automatic)")
    output.print(f"results.json, table.md, the .ilwp files and the figures are in {out}", soft_wrap=True)
