"""Models that INC has converted, to `.ilwp` files and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any

from neural_compressor.torch.quantization import quantize
from torch import fx, nn

import ilwp_plugin
from ilwp_plugin import CompressedModel, Ledger
from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin.errors import ConfigError, FormatError, TrainingError
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.models.tensors import dtype_of

from .composition import Composition, compose
from .portable import from_portable
from .stacking import compress_exported, is_exported, restore_exported
from .state import attached, qconfig
from .versions import installed

__all__ = ["FILE", "compressed_of", "load", "make_savable", "save"]

FILE = "model.ilwp"
"""In a folder, which is what INC's `save` is given."""

_KEY = "neural_compressor"
_CALIBRATED = ("gptq", "awq", "teq", "autoround", "smooth_quant", "fp8_quant", "hybrid_gptq")
"""Algorithms whose modules cannot be made again without data."""


def save(model: nn.Module, path: str | os.PathLike[str] = "saved_results") -> Ledger:
    """Write a converted model to an `.ilwp` file, and verify it. INC's own `save` ends here, too.

    Args:
        model: as `quantize` or `convert` returned it.
        path: the file, or a folder, in which it will be `model.ilwp`.

    Returns:
        What each part of the file costs, in bytes.

    Raises:
        TrainingError: the model is not converted yet.
        ConfigError: its configuration quantizes nothing.
        TensorError: a compressed layer has changed since the conversion.
        FileError: the file cannot be written.
    """
    file, compressed = _file(path), compressed_of(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    return compressed.save(file)


def compressed_of(model: nn.Module) -> CompressedModel:
    """What `save` writes of a converted model, or of what `stack` returned. Raises likewise."""
    if is_exported(model):
        assert isinstance(model, fx.GraphModule)
        return compress_exported(model)
    found = attached(model)
    if not found.quantizes:
        raise ConfigError(
            "the configuration trains with the loss only, and leaves nothing to save as compressed; set bits"
        )
    if found.compressed is None:
        raise TrainingError("the model is prepared, not converted; call convert(model) first")
    return found.compressed.with_others_of(model, _describe(qconfig(model), found.config))


def _describe(mapping: Mapping[Any, Any], config: CoreConfig) -> dict[str, Any]:
    """The metadata of a converted model's file: how INC made it."""
    parts = [config for config in mapping.values() if isinstance(config, Composition)]
    others = {name: values for part in parts for name, values in part.others().items()}
    about = {"version": installed(), "others": others, "ilwp": config.differences()}
    return {_KEY: about}


def load(path: str | os.PathLike[str], model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """Restore a model that `save` wrote. (INC's own `load` knows only its own algorithms.)

    Args:
        path: the file, or the folder that holds `model.ilwp`.
        model: one of the same architecture, as it was before INC changed it; it is changed in place, unless
            the file holds an exported one.
        example_inputs: for an exported model: with what it is exported again; see `stack`.

    Returns:
        The model, with the saved weights exactly; for an exported one a graph module with the saved codes, scales and
        zero points exactly. Algorithms composed with ilwp are applied again first, so that their modules are there.

    Raises:
        FileError, FormatError: see `ilwp_plugin.load`.
        ConfigError: an algorithm in the file needs data to make its modules.
        TensorError: the file does not fit the model.
    """
    file = _file(path)
    stored = ilwp_plugin.load(file)
    about = stored.metadata.get(_KEY)
    if isinstance(about, dict) and "exported" in about:
        return restore_exported(stored, about, model, example_inputs, str(file))
    if not isinstance(about, dict) or not isinstance(about.get("others"), dict):
        raise FormatError(f"{file}: not written by save(); ilwp_plugin.load(path).apply_to(model) restores its tensors")
    others = about["others"]
    for name in others:
        if name in _CALIBRATED:
            raise ConfigError(
                f"{name!r} needs data to make its modules: quantize the model with it again, then "
                "ilwp_plugin.load(path).apply_to(model) restores all tensors"
            )
    if others:
        model = quantize(model, compose(*(from_portable(name, values, str(file)) for name, values in others.items())))
        _follow_dtypes(model, {info.name: info.dtype for info in stored.tensors})
    stored.apply_to(model)
    return model


def _follow_dtypes(model: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Give the tensors of INC's modules the dtypes of a file: some change as soon as they run."""
    for prefix, module in model.named_modules():
        if not type(module).__module__.startswith("neural_compressor."):
            continue
        for name, tensor in (*module.named_parameters(prefix), *module.named_buffers(prefix)):
            if name in dtypes and tensor.is_floating_point() and dtype_of(dtypes[name]).is_floating_point:
                tensor.data = tensor.data.to(dtype_of(dtypes[name]))


def make_savable(model: nn.Module, mapping: Mapping[Any, Any]) -> None:
    """Give the model what INC's `save` looks for: the configuration of each operator, and a method."""
    own: Any = unwrap(model)
    own.qconfig = mapping
    own.save = MethodType(save, own)


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path).expanduser()
    return path if path.suffix == ".ilwp" else path / FILE
