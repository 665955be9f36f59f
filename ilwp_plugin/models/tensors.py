"""Between torch's tensors and the arrays of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilwp_plugin.format.integers import IntegerTensor

__all__ = [
    "Place",
    "array_of",
    "dtype_name",
    "dtype_of",
    "integers_of",
    "place_of",
    "restored",
    "same_bits",
    "tensor_of",
]

_NAMES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


Place = tuple[Any, ...]


def place_of(name: str, tensor: Tensor) -> Place:
    """Equal for tensors with the same values at the same place in memory; empty ones share nothing."""
    if tensor.numel() == 0:
        return (name,)
    view = (tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
    return (tensor.data_ptr(), tensor.device, *view)


def dtype_name(dtype: torch.dtype) -> str:
    """The name that a file knows a dtype by, like "float32"."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The inverse of `dtype_name`."""
    return _NAMES[name]


def array_of(tensor: Tensor) -> NDArray[np.generic]:
    """The values of a tensor on the CPU, in row-major order.

    Dtypes that numpy lacks come as their bits: bfloat16 as uint16, float8 as uint8. Memory is shared where it can be.
    """
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    try:
        return flat.numpy()
    except TypeError:
        return flat.view({1: torch.uint8, 2: torch.int16}[flat.dtype.itemsize]).numpy()


def tensor_of(array: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    """A new tensor of an array's values, or of its bits where numpy lacks the dtype."""
    content = bytearray(array.tobytes())
    flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.reshape(array.shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN and signs of zeros included."""
    return a.shape == b.shape and a.dtype == b.dtype and array_of(a).tobytes() == array_of(b).tobytes()


def integers_of(codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int = 0) -> IntegerTensor:
    """Integer codes of a toolkit as a file holds them; the arguments are those of `IntegerTensor`, as tensors."""
    points = None if zero_point is None else array_of(zero_point).astype(np.int64)
    return IntegerTensor(array_of(codes), array_of(scale).astype(np.float32), points, axis)


def restored(value: IntegerTensor) -> Tensor:
    """What codes restore to: a new float32 tensor."""
    return torch.from_numpy(value.restore())
