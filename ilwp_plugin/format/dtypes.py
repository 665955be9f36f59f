"""The dtypes of tensors in a file, by name.

Names are those that torch and numpy share. bfloat16 and the 8-bit floats have no numpy dtype of their own: their values
are carried as unsigned integers of the same bits, and become what they are where ml_dtypes is installed. Nothing that
the format computes needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import MissingDependencyError, TensorError, nearest

__all__ = [
    "DTYPES",
    "DType",
    "as_numpy",
    "cast",
    "dtype_of_number",
    "is_finite",
    "is_real",
    "largest_value",
    "name_of",
    "numpy_dtype",
    "to_float32",
]


@dataclass(frozen=True)
class DType:
    """One dtype.

    Attributes:
        name: as torch and numpy call it.
        number: in the file; never reused.
        kind: what its values are.
        carrier: a dtype of numpy with as many bytes, in which the bits of its values are carried; its own where numpy
            has it.
        native: whether that is its own.
    """

    name: str
    number: int
    kind: Literal["float", "signed", "unsigned", "bool", "complex"]
    carrier: np.dtype[Any]
    native: bool = True

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return self.carrier.itemsize


def _table() -> dict[str, DType]:
    rows: list[tuple[str, int, Any, str, bool]] = [
        ("float32", 0, "float", "<f4", True),
        ("float16", 1, "float", "<f2", True),
        ("bfloat16", 2, "float", "<u2", False),
        ("float64", 3, "float", "<f8", True),
        ("uint8", 4, "unsigned", "u1", True),
        ("int8", 5, "signed", "i1", True),
        ("int16", 6, "signed", "<i2", True),
        ("int32", 7, "signed", "<i4", True),
        ("int64", 8, "signed", "<i8", True),
        ("bool", 9, "bool", "?", True),
        ("complex64", 10, "complex", "<c8", True),
        ("complex128", 11, "complex", "<c16", True),
        ("float8_e4m3fn", 12, "float", "u1", False),
        ("float8_e5m2", 13, "float", "u1", False),
        ("uint16", 14, "unsigned", "<u2", True),
        ("uint32", 15, "unsigned", "<u4", True),
        ("uint64", 16, "unsigned", "<u8", True),
        ("float8_e4m3fnuz", 17, "float", "u1", False),
        ("float8_e5m2fnuz", 18, "float", "u1", False),
        ("float8_e8m0fnu", 19, "float", "u1", False),
    ]
    return {name: DType(name, number, kind, np.dtype(code), native) for name, number, kind, code, native in rows}


DTYPES = _table()
"""By name. Numbers 20 to 23 are kept for int4, uint4, float4_e2m1fn and complex32, 31 for an extension."""

_BY_NUMBER = {dtype.number: dtype for dtype in DTYPES.values()}
_REAL = ("float32", "float16", "bfloat16", "float64")


def dtype_of_number(number: int) -> DType | None:
    """The dtype that a file names by number; None where there is none."""
    return _BY_NUMBER.get(number)


def is_real(name: str) -> bool:
    """Whether the codec computes with this dtype: a float of 16 bits or more."""
    return name in _REAL


def name_of(array: NDArray[Any]) -> str:
    """The name of an array's dtype. Raises TensorError where a file has no number for it."""
    name = array.dtype.name
    if name not in DTYPES:
        raise TensorError(f"a .ilwp file cannot hold values of dtype {name}; {nearest(name, DTYPES)}")
    return name


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype itself.

    Raises:
        MissingDependencyError: it is one of ml_dtypes, which is not installed.
    """
    dtype = DTYPES[name]
    if dtype.native:
        return dtype.carrier
    try:
        import ml_dtypes
    except ImportError:
        raise MissingDependencyError(
            f"numpy has no {name}; pip install ml_dtypes, or take the bits of such tensors (as_bits=True)"
        ) from None
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def as_numpy(carried: NDArray[Any], name: str) -> NDArray[Any]:
    """Carried values as an array of their own dtype; no copy. Raises as `numpy_dtype` does."""
    return carried if DTYPES[name].native else carried.view(numpy_dtype(name))


def to_float32(carried: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Carried values of a 16- or 32-bit float in float32, exactly."""
    if name == "bfloat16":
        return (carried.astype("<u4") << np.uint32(16)).view("<f4")
    return carried.astype("<f4", copy=False)


def cast(values: NDArray[np.float32], name: str) -> NDArray[Any]:
    """float32 values in another real dtype, rounded to the nearest, ties to even; carried.

    What is beyond the range becomes infinite.

    Args:
        values: float32, any shape.
        name: float32, float16, bfloat16 or float64.

    Raises:
        TensorError: another dtype.
    """
    if name == "bfloat16":
        bits = values.astype("<f4", copy=False).view("<u4")
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        nan = np.isnan(values)
        return np.where(nan, np.uint32(0x7FC0), rounded).astype("<u2") if nan.any() else rounded.astype("<u2")
    if not is_real(name):
        raise TensorError(f"weights cannot be restored to {name}; expected one of {', '.join(_REAL)}")
    with np.errstate(over="ignore"):
        return values.astype(DTYPES[name].carrier, copy=False)


def largest_value(name: str) -> float:
    """What a float32 value may be at most to stay finite in a real dtype."""
    limits = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127")}
    return limits.get(name, float(np.finfo(np.float32).max))


def is_finite(carried: NDArray[Any], name: str) -> bool:
    """Whether no carried value of a real dtype is infinite or NaN."""
    if name == "bfloat16":
        return not bool(((carried & np.uint16(0x7F80)) == np.uint16(0x7F80)).any())
    return bool(np.isfinite(carried).all())
