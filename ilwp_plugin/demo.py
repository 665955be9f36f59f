"""The paper's Table 1 and figures for a network trained here and now: without and with the inter-layer loss."""

from __future__ import annotations

import copy
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ilwp_plugin._imports import optional
from ilwp_plugin._version import __version__
from ilwp_plugin.analysis import analyze
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import FileError, RegistryError, TrainingError, nearest
from ilwp_plugin.models.weights import read_state_dict
from ilwp_plugin.pipeline.compress import compress
from ilwp_plugin.pipeline.file import load
from ilwp_plugin.zoo import LAYERS, Dataset, Recipe, accuracy, build_model, load_data, scope_of, train

__all__ = ["PRESETS", "DemoSettings", "Row", "initial_model", "preset", "run_demo", "trained_model"]

Report = Callable[[str, int, int], None]
"""(what is being trained, steps done, steps in all)."""


@dataclass(frozen=True)
class DemoSettings:
    """What to train. `PRESETS` has the values for each data set."""

    data: str = "digits"
    model: str = "mobilenet"
    width: float = 0.25
    stem_stride: int = 1
    epochs: int = 20
    batch: int = 64
    seed: int = 0
    bits: int = 8


PRESETS: Mapping[str, DemoSettings] = {
    "digits": DemoSettings(),
    "fashion-mnist": DemoSettings("fashion-mnist", width=0.5, stem_stride=2, epochs=8, batch=256),
    "cifar-10": DemoSettings("cifar-10", width=1.0, epochs=200, batch=256),
    "cifar-100": DemoSettings("cifar-100", width=1.0, epochs=200, batch=256),
}
"""What `ilwp demo` trains, by data set."""


_OF_MODELS: Mapping[str, Mapping[str, Any]] = {
    name: {"width": 1.0, "stem_stride": 1} for name in ("lenet300", "lenet5")
}
"""What networks have that are not scaled to a data set."""


@dataclass(frozen=True)
class Row:
    """A row of Table 1: one file, and the accuracy of the model restored from it."""

    method: str
    trained_with_loss: bool
    bits: int
    texture_bytes: int
    non_texture_bytes: int
    total_bytes: int
    file_bytes: int
    accuracy: float
    accuracy_fp32: float


def preset(data: str, **changes: Any) -> DemoSettings:
    """The settings for a data set, with those changed that are not None; a LeNet is as large as in its papers.

    Raises:
        RegistryError: there is no such data set.
    """
    if data not in PRESETS:
        raise RegistryError(f"unknown data set {data!r}; {nearest(data, PRESETS)}")
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(PRESETS[data], **{**_OF_MODELS.get(str(given.get("model")), {}), **given})


def run_demo(
    settings: DemoSettings,
    out: str | os.PathLike[str],
    data_folder: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train twice, compress in every mode, restore from the files, measure.

    Writes to `out`: `results.json`, `table.md`, one `.ilwp` file for each row, and the figures.

    Args:
        settings: what to train.
        out: folder for the results; is made if need be.
        data_folder: where the data set's files are, if not in the usual place.
        report: is told the progress of the trainings.

    Returns:
        What `results.json` holds: `rows` (see Row), `collocated_without_loss` (a row likewise), `settings`,
        `loss_weight`, `layers` (which ones prediction is about), `versions`.

    Raises:
        DataError: the data set is missing.
        FileError: the folder cannot be written.
    """
    optional("matplotlib", "report")  # before hours of training, not after
    data = load_data(settings.data, data_folder)
    scope = scope_of(initial_model(settings, data))
    config = IlwpConfig.paper(bits=settings.bits, coder="huffman", scope=scope)  # the paper's coder
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {out}: {error.strerror or error}") from error
    plain, _ = _trained(settings, data, None, report)
    regularized, loss_weight = _trained(settings, data, config, report)

    fp32 = {id(model): accuracy(model, data) for model in (plain, regularized)}

    def row(mode: str, model: nn.Module, with_loss: bool) -> Row:
        path = out / (f"{mode}.ilwp" if with_loss or mode != "collocated" else "collocated_without_loss.ilwp")
        compress(model, config.replace(mode=mode)).save(path)
        stored = load(path)
        restored = copy.deepcopy(model)
        for parameter in restored.parameters():
            torch.nn.init.zeros_(parameter)  # so that what is measured can only come from the file
        stored.apply_to(restored)
        ledger = stored.ledger
        return Row(
            method=mode,
            trained_with_loss=with_loss,
            bits=settings.bits,
            texture_bytes=ledger.texture_bytes,
            non_texture_bytes=ledger.non_texture_bytes,
            total_bytes=ledger.total_bytes,
            file_bytes=path.stat().st_size,
            accuracy=accuracy(restored, data),
            accuracy_fp32=fp32[id(model)],
        )

    rows = [row(mode, plain, False) for mode in ("none", "local", "full")] + [row("collocated", regularized, True)]
    without = row("collocated", plain, False)
    results = {
        "rows": [asdict(r) for r in rows],
        "collocated_without_loss": asdict(without),
        "settings": asdict(settings),
        "data": settings.data,
        "test_images": len(data.test_images),
        "seed": settings.seed,
        "loss_weight": loss_weight,
        "layers": LAYERS[scope],
        "versions": {
            "ilwp-plugin": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    try:
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (out / "table.md").write_text(_markdown(rows, without, results), encoding="utf-8")
    except OSError as error:
        raise FileError(f"cannot write to {out}: {error.strerror or error}") from error
    analyze({"without the inter-layer loss": plain, "with the inter-layer loss": regularized}, out, config)
    return results


def initial_model(settings: DemoSettings, data: Dataset) -> nn.Module:
    """The network of the settings, its weights drawn from the seed.

    Raises:
        TrainingError: the seed is out of range.
    """
    if not 0 <= settings.seed < 1 << 63:
        raise TrainingError(f"seed {settings.seed}: expected a number from 0 to 2^63 - 1")
    torch.manual_seed(settings.seed)
    return build_model(
        settings.model,
        width=settings.width,
        stem_stride=settings.stem_stride,
        in_channels=data.channels,
        classes=data.classes,
    )


def trained_model(settings: DemoSettings, data: Dataset, path: str | os.PathLike[str] | None = None) -> nn.Module:
    """The network of the settings, trained without the inter-layer loss, or with the weights of a file.

    Args:
        settings: what to train.
        data: the data set.
        path: a state dict of that network, instead of training it.

    Raises:
        TrainingError: the seed is out of range.
        FileError: the file cannot be read.
    """
    model = initial_model(settings, data)
    if path is not None:
        model.load_state_dict(read_state_dict(path))
    else:
        train(model, data, Recipe(epochs=settings.epochs, batch=settings.batch, seed=settings.seed))
    return model


def _trained(
    settings: DemoSettings, data: Dataset, config: IlwpConfig | None, report: Report | None
) -> tuple[nn.Module, float]:
    """The same initial weights and the same batches, with or without the loss."""
    model = initial_model(settings, data)
    what = f"{settings.model} {'with' if config else 'without'} the inter-layer loss"
    recipe = Recipe(epochs=settings.epochs, batch=settings.batch, seed=settings.seed)
    steps = recipe.steps(data)
    tell = None if report is None else lambda step, _: report(what, step, steps)
    regularizer = train(model, data, recipe, config, tell)
    return model, 0.0 if regularizer is None else regularizer.loss_weight


def _markdown(rows: list[Row], without: Row, results: Mapping[str, Any]) -> str:
    """Table 1 in Markdown, with where it comes from beneath."""
    baseline = rows[0].total_bytes
    lines = [
        "| method | loss | bits | texture B | non-texture B | total B | of `none` | file B | accuracy % | fp32 % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in [*rows, without]:
        loss = "with" if r.trained_with_loss else "without"
        lines.append(
            f"| {r.method} | {loss} | {r.bits} | {r.texture_bytes:,} | {r.non_texture_bytes:,} | {r.total_bytes:,} "
            f"| {r.total_bytes / baseline:.3f} | {r.file_bytes:,} | {r.accuracy:.2f} | {r.accuracy_fp32:.2f} |"
        )
    s = DemoSettings(**results["settings"])
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines += [
        "",
        f"{s.model}, width {s.width}, stem stride {s.stem_stride}, on {s.data} ({results['test_images']:,} test "
        f"images), {s.epochs} epochs, batch {s.batch}, seed {s.seed}; weight of the loss "
        f"{results['loss_weight']:.3g} (automatic); {versions}. Accuracy is that of the model restored from the file. "
        f"Total bytes are those of the {results['layers']} with every table, step, name and checksum; the file also "
        "holds all other layers, as they are.",
    ]
    return "\n".join(lines) + "\n"
