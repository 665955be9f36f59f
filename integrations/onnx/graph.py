"""The tensors of an ONNX model, apart from the rest of it, and together again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from ilwp_plugin.errors import FileError, TensorError
from ilwp_plugin.format import check_name
from ilwp_plugin.paths import check_regular

from .layers import LayerNode
from .protobuf import LOCATION
from .rearrange import graphs_of
from .tensors import SHAPES, SMALL, dtype_in_file, nbytes, values_of

__all__ = ["check", "key_in", "load_model", "take_out"]


def load_model(path: str | os.PathLike[str]) -> tuple[ModelProto, int]:
    """Read a model, external data included; and how many bytes its files have.

    Raises:
        FileError: it cannot be read, or is none.
    """
    check_regular(path)
    folder = Path(path).parent
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
        others = {folder / place for place in _places(model)}
        size = sum(file.stat().st_size for file in (Path(path), *others))
        onnx.load_external_data_for_model(model, os.fspath(folder))
    except Exception as error:  # protobuf and the reader of external data raise what they meet
        reason = " ".join(str(error).split())
        raise FileError(
            f"{os.fspath(path)}: no ONNX model that can be read ({type(error).__name__}: {reason})"
        ) from error
    if not model.graph.node and not model.graph.initializer:
        raise FileError(f"{os.fspath(path)}: no ONNX model that can be read (it has no graph)")
    return model, size


def _places(model: ModelProto) -> set[str]:
    """Where a model has external data, as it names the files."""
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    constants = [attribute.t for node in nodes for attribute in node.attribute if attribute.HasField("t")]
    tensors = [tensor for graph in graphs_of(model.graph) for tensor in graph.initializer]
    return {
        entry.value for tensor in (*tensors, *constants) for entry in tensor.external_data if entry.key == "location"
    }


def take_out(model: ModelProto, layers: Iterable[LayerNode]) -> dict[str, tuple[str, NDArray[Any]]]:
    """Take the values of all tensors out of a model, which is changed: in their place it names their keys.

    Args:
        model: whose values were gathered, see `rearrange.gather_values`.
        layers: its layers. The weight of one has the key `name.weight`, its bias `name.bias`; all other keys are the
            names of initializers.

    Returns:
        By key the name of the dtype, and the values as a file of ours carries them.
    """
    own = {tensor.name: tensor for tensor in model.graph.initializer if nbytes(tensor)}
    keys: dict[str, str] = {}
    for layer in layers:
        if layer.weight in own and nbytes(own[layer.weight]) >= SMALL:
            base = layer.weight.removesuffix(".weight") if layer.weight.endswith(".weight") else layer.weight
            name = _unique(_valid(base), lambda name: f"{name}.weight" in keys.values())
            keys[layer.weight] = f"{name}.weight"
            if layer.bias is not None and layer.bias in own:
                keys[layer.bias] = f"{name}.bias"
    taken: dict[str, tuple[str, NDArray[Any]]] = {}
    used = set(keys.values())
    for tensor in model.graph.initializer:
        dtype = dtype_in_file(tensor.data_type)
        listed = dtype in ("int32", "int64") and len(tensor.dims) <= 1
        least = SHAPES + 1 if listed else SMALL
        if dtype is None or (nbytes(tensor) < least and tensor.name not in keys):
            continue
        key = keys.get(tensor.name) or _unique(_valid(tensor.name), lambda name: name in used)
        used.add(key)
        taken[key] = (dtype, values_of(tensor))
        _empty(tensor, key)
    return taken


def key_in(tensor: TensorProto) -> str | None:
    """The key under which a file of ours holds a tensor; None where the tensor holds its own values."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    return location.removeprefix(LOCATION) if location.startswith(LOCATION) else None


def _empty(tensor: TensorProto, key: str) -> None:
    kept = (tensor.name, tensor.data_type, list(tensor.dims))
    tensor.Clear()
    tensor.name, tensor.data_type = kept[0], kept[1]
    tensor.dims.extend(kept[2])
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", LOCATION + key


def _valid(name: str) -> str:
    """A name that a file can hold."""
    base = ".".join(part for part in name.split(".") if part) or "tensor"
    fits = check_name(f"{base}.weight") is None
    return base if fits else "".join(c if c.isalnum() or c in "_-" else "_" for c in base)[:200]


def _unique(name: str, taken: Callable[[str], bool]) -> str:
    found, number = name, 1
    while taken(found):
        number += 1
        found = f"{name}_{number}"
    return found


def check(model: ModelProto | str) -> None:
    """Raises TensorError where onnx.checker does not accept a model, or the one in a file."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise TensorError(f"the model is not valid ONNX: {error}") from error
