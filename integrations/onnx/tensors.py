"""The values of tensors in ONNX models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ilwp_plugin.format.dtypes import DTYPES

__all__ = ["SHAPES", "SMALL", "dtype_in_file", "nbytes", "numel", "put_values", "tensor_of_list", "values_of"]

SMALL = 64
"""Tensors of fewer bytes stay in the graph: shapes, axes and scalars."""

SHAPES = 1024
"""So do lists of integers of at most so many bytes: ONNX Runtime reads pads and the like before it gets values."""

_DTYPES: dict[str, str] = {
    "FLOAT": "float32",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "DOUBLE": "float64",
    "UINT8": "uint8",
    "INT8": "int8",
    "UINT16": "uint16",
    "INT16": "int16",
    "UINT32": "uint32",
    "INT32": "int32",
    "UINT64": "uint64",
    "INT64": "int64",
    "BOOL": "bool",
    "COMPLEX64": "complex64",
    "COMPLEX128": "complex128",
    "FLOAT8E4M3FN": "float8_e4m3fn",
    "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E4M3FNUZ": "float8_e4m3fnuz",
    "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
    "FLOAT8E8M0": "float8_e8m0fnu",
}
_PACKED: dict[str, int] = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
"""Bits of the types of which several values are in a byte; a file of ours holds the bytes."""

_FIELDS = {"FLOAT": "float_data", "COMPLEX64": "float_data", "DOUBLE": "double_data", "COMPLEX128": "double_data"}
_FIELDS |= {"INT64": "int64_data", "UINT32": "uint64_data", "UINT64": "uint64_data"}
"""Where a tensor without raw data has its values; all others have them in `int32_data`."""


def _type_name(data_type: int) -> str:
    try:
        return str(TensorProto.DataType.Name(data_type))
    except ValueError:
        return ""


def dtype_in_file(data_type: int) -> str | None:
    """The dtype that a file of ours holds a tensor in; None for strings and what is not known."""
    name = _type_name(data_type)
    return "uint8" if name in _PACKED else _DTYPES.get(name)


def numel(tensor: TensorProto) -> int:
    """How many values a tensor has."""
    return int(np.prod(tensor.dims, dtype=np.int64))


def nbytes(tensor: TensorProto) -> int:
    """Bytes that its values take; 0 of strings and what is not known."""
    name, count = _type_name(tensor.data_type), numel(tensor)
    if name in _PACKED:
        return -(-count * _PACKED[name] // 8)
    return count * DTYPES[_DTYPES[name]].itemsize if name in _DTYPES else 0


def values_of(tensor: TensorProto) -> NDArray[Any]:
    """The values as a file of ours carries them: dtypes that numpy lacks as their bits, packed ones as flat bytes."""
    name = _type_name(tensor.data_type)
    dtype = DTYPES["uint8" if name in _PACKED else _DTYPES[name]]
    shape = (nbytes(tensor),) if name in _PACKED else tuple(tensor.dims)
    if tensor.HasField("raw_data"):
        return np.frombuffer(tensor.raw_data, dtype.carrier).reshape(shape)
    field = _FIELDS.get(name, "int32_data")
    values = np.array(getattr(tensor, field), {"float_data": "<f4", "double_data": "<f8"}.get(field))
    if name.startswith("COMPLEX"):
        return values.view(dtype.carrier).reshape(shape)
    if field == "int32_data" and dtype.kind != "bool":  # bits of floats, and integers of fewer bits
        values = values.astype(f"<i{dtype.itemsize}").view(dtype.carrier)
    return values.astype(dtype.carrier, copy=False).reshape(shape)


def put_values(tensor: TensorProto, values: NDArray[Any]) -> None:
    """Put values, or any of as many bytes, into a tensor instead of what it has."""
    for field in {"int32_data", *_FIELDS.values()}:
        tensor.ClearField(field)
    tensor.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def tensor_of_list(name: str, values: Any, data_type: int) -> TensorProto:
    """A tensor of one dimension, of float32 or int64."""
    array = np.asarray(values, "<f4" if data_type == TensorProto.FLOAT else "<i8")
    return TensorProto(name=name, data_type=data_type, dims=array.shape, raw_data=array.tobytes())
