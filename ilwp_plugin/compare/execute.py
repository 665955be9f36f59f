"""One task: train a network, or compress a trained one and measure what its file restores."""

from __future__ import annotations

import io
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from ilwp_plugin._version import __version__
from ilwp_plugin.analysis import analysis_of
from ilwp_plugin.compare.config import Network, Task
from ilwp_plugin.compare.measure import compare_answers, right_answers, watch
from ilwp_plugin.compare.methods import Case, find_method
from ilwp_plugin.compare.results import MethodResult, Sizes, TrainingResult
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.demo import initial_model
from ilwp_plugin.errors import FileError, IlwpError
from ilwp_plugin.format.container import write_file
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.models.tensor_files import load_tensors
from ilwp_plugin.zoo import Dataset, Recipe, load_data, scope_layers, scope_of, train

__all__ = ["execute"]


def execute(
    task: Task, folder: Path, data_folder: Path | None = None, device: str = "cpu"
) -> TrainingResult | MethodResult:
    """Do a task.

    Args:
        task: what to do.
        folder: of the comparison; trained networks are shared in it, and files go there.
        data_folder: where the data set's files are, if not in the usual place.
        device: where networks are trained. Answers and files are made on the CPU, so that they compare.

    Raises:
        IlwpError: whatever goes wrong in the method, the data or the folder.
    """
    torch.manual_seed(task.network.seed)
    data = load_data(task.network.data, data_folder)
    trained = _trained(task.network, data, folder, device)
    if task.method is None:
        return _training_result(task, trained, data)
    method = find_method(task.method)
    options = method.options.from_dict(task.options)
    place = folder / "files" / task.key
    place.mkdir(parents=True, exist_ok=True)
    path = place / "model"
    case = Case(task.network.settings, data, trained["state"], place, device)
    with watch() as compression:
        compressed = method.compress(case, options)
        ledger = compressed.save(path)
    with watch() as loading:
        restored = compressed.restore(path)
    loss = "" if task.network.loss_weight == 0 else f", trained with loss {task.network.loss_weight}"
    return MethodResult(
        key=task.key,
        network=task.network,
        method=task.method,
        group=method.group,
        title=method.title(options) + loss,
        options=task.options,
        loss_weight=trained["loss_weight"],
        sizes=Sizes(
            raw_bytes=compressed.raw_bytes,
            raw_depthwise_bytes=compressed.raw_depthwise_bytes,
            file_bytes=path.stat().st_size,
            depthwise_bytes=None if ledger is None else _depthwise_bytes(ledger, case.fresh()),
            texture_bytes=None if ledger is None else ledger.texture_bytes,
            non_texture_bytes=None if ledger is None else ledger.non_texture_bytes,
        ),
        accuracy=compare_answers(right_answers(restored, data), trained["right"]),
        compression=compression.usage,
        loading=loading.usage,
        versions=_versions(method.packages),
    )


def _trained(network: Network, data: Dataset, folder: Path, device: str) -> dict[str, Any]:
    """A trained network from the folder; it is trained first if it is not there, by one process only."""
    path = folder / "trained" / f"{network.key}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            settings = network.settings
            model = initial_model(settings, data).to(device)
            scope = scope_of(model)
            config = None if network.loss_weight == 0 else IlwpConfig(loss_weight=network.loss_weight, scope=scope)
            recipe = Recipe(epochs=settings.epochs, batch=settings.batch, seed=settings.seed)
            checkpoint = path.with_suffix(".checkpoint")
            regularizer = train(model, data, recipe, config, checkpoint=checkpoint)
            model.cpu()
            content = {
                "state": model.state_dict(),
                "right": right_answers(model.eval(), data),
                "loss_weight": 0.0 if regularizer is None else regularizer.loss_weight,
            }
            buffer = io.BytesIO()
            torch.save(content, buffer)
            write_file(path, [buffer.getbuffer()])
            checkpoint.unlink(missing_ok=True)
    try:
        found: dict[str, Any] = load_tensors(path)
    except IlwpError:
        raise
    except ValueError as error:
        raise FileError(f"{path}: no trained network ({type(error).__name__}); delete it to train again") from error
    return found


def _training_result(task: Task, trained: dict[str, Any], data: Dataset) -> TrainingResult:
    model: nn.Module = initial_model(task.network.settings, data)
    model.load_state_dict(trained["state"])
    return TrainingResult(
        key=task.key,
        network=task.network,
        loss_weight=trained["loss_weight"],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        depthwise_parameters=sum(layer.weight.numel() for layer in scope_layers(model).values()),
        images=len(trained["right"]),
        right=int(trained["right"].sum()),
        analysis=analysis_of(model, IlwpConfig(scope=scope_of(model))) if scope_layers(model) else {},
        versions=_versions(()),
    )


def _depthwise_bytes(ledger: Ledger, model: nn.Module) -> int:
    """What a file spends on the weights of `scope_layers`: the sections of chains, but for other layers in them, and
    whatever else is stored of them."""
    names = {f"{name}.weight" for name in scope_layers(model)}
    layers = ledger.layers.items()
    others = sum(size.total_bytes for name, size in layers if name not in names)
    outside = sum(size.file_bytes - size.total_bytes for name, size in layers if name in names)
    return ledger.total_bytes - others + outside


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {
        "ilwp-plugin": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **{name: version(name) for name in packages},
    }
