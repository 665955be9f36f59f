"""The tensors of an ONNX model, apart from the rest of it, and together again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from ilwp_plugin.errors import FileError, TensorError
from ilwp_plugin.format import check_name
from ilwp_plugin.format.dtypes import DTYPES

from .protobuf import LOCATION

__all__ = ["WEIGHT_INPUTS", "check", "fill", "graphs_of", "key_in", "load_model", "take_out"]

_SMALL = 64
"""Tensors of fewer bytes stay in the graph: shapes, axes and scalars."""

_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT16: "int16",
    TensorProto.UINT32: "uint32",
    TensorProto.INT32: "int32",
    TensorProto.UINT64: "uint64",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT8E5M2: "float8_e5m2",
}
"""Of ONNX; others (4-bit integers, strings, complex numbers) stay in the graph."""

WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
}
"""Which inputs of an operation are weights."""


def load_model(path: str | os.PathLike[str]) -> ModelProto:
    """Read a model, external data included.

    Raises:
        FileError: it cannot be read, or is none.
    """
    try:
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        return onnx.load(os.fspath(path))
    except Exception as error:  # protobuf and the reader of external data raise what they meet
        raise FileError(
            f"{os.fspath(path)}: no ONNX model that can be read ({type(error).__name__}: {error})"
        ) from error


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside its nodes, the outer ones first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)
            for inner in attribute.graphs:
                yield from graphs_of(inner)


def take_out(model: ModelProto) -> dict[str, tuple[str, NDArray[Any]]]:
    """Take the values of all tensors out of a model, which is changed: in their place it names their keys.

    Constants become initializers first, which is the same. What is inside nodes that hold graphs stays there. Keys are
    the names of initializers, those of layers' weights with `.weight` at their end.

    Returns:
        By key the name of the dtype, and the values as a file of ours carries them.
    """
    _constants_to_initializers(model.graph)
    weights = {
        node.input[number]
        for graph in graphs_of(model.graph)
        for node in graph.node
        for number in WEIGHT_INPUTS.get(node.op_type, ())
        if number < len(node.input)
    }
    taken: dict[str, tuple[str, NDArray[Any]]] = {}
    for tensor in model.graph.initializer:
        dtype = _DTYPES.get(tensor.data_type)
        if dtype is None:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.nbytes >= _SMALL:
            key = _key(tensor.name, tensor.name in weights, taken)
            taken[key] = (dtype, _carried(values, dtype))
            _empty(tensor, key)
    return taken


def fill(model: ModelProto, value_of: Callable[[str], NDArray[Any]]) -> None:
    """Put values into a model, in place; the inverse of `take_out`.

    Args:
        model: as `take_out` left it.
        value_of: called with a key, gives the values in any dtype of as many bytes.
    """
    for tensor in model.graph.initializer:
        key = key_in(tensor)
        if key is not None:
            values = np.asarray(value_of(key))
            tensor.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT


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


def _carried(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    carrier = DTYPES[dtype].carrier
    return values if values.dtype == carrier else np.ascontiguousarray(values).view(carrier)


def _key(name: str, is_weight: bool, taken: Mapping[str, Any]) -> str:
    """A key that a file can hold, and that no other tensor has."""
    base = ".".join(part for part in name.split(".") if part) or "tensor"
    base = base if check_name(base) is None else "".join(c if c.isalnum() or c in "._-" else "_" for c in base)[:256]
    key = base if not is_weight or base.endswith(".weight") else f"{base}.weight"
    number = 1
    while key in taken:
        number += 1
        key = f"{base}_{number}.weight" if is_weight else f"{base}_{number}"
    return key


def _constants_to_initializers(graph: GraphProto) -> None:
    kept: list[NodeProto] = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.type == AttributeProto.TENSOR), None)
        constant = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
        known = constant and value is not None and value.data_type in _DTYPES
        if known and value is not None and onnx.numpy_helper.to_array(value).nbytes >= _SMALL:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            copy = NodeProto()
            copy.CopyFrom(node)
            kept.append(copy)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def check(model: ModelProto) -> None:
    """Raises TensorError where onnx.checker does not accept a model."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise TensorError(f"the model is not valid ONNX: {error}") from error
