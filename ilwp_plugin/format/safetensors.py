"""Restored tensors as a .safetensors file, one after the other, without any library of that name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence

from ilwp_plugin.errors import FileError
from ilwp_plugin.format.container import TensorInfo, write_file
from ilwp_plugin.format.dtypes import DTYPES
from ilwp_plugin.format.file import IlwpFile
from ilwp_plugin.format.sections.base import value_bytes

__all__ = ["write_safetensors"]

_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e8m0fnu": "F8_E8M0",
}


def write_safetensors(path: str | os.PathLike[str], file: IlwpFile) -> int:
    """Write all tensors of a file, atomically; the other format knows no sharing: each tensor is written in full.

    Wider values come first, so that every tensor is aligned. Only one tensor is in memory at a time.

    Returns:
        Number of tensors.

    Raises:
        FileError: the file cannot be written, or the other format has no name for a dtype.
        FormatError: of a file that was read without verification: a section is damaged.
    """
    for info in file.infos:
        if info.dtype not in _NAMES or info.name == "__metadata__":
            what = "a tensor of this name" if info.dtype in _NAMES else info.dtype
            raise FileError(f"{os.fspath(path)}: a .safetensors file cannot hold {info.name!r}: {what}")
    write_file(path, _chunks(file))
    return len(file.infos)


def _chunks(file: IlwpFile) -> Iterator[bytes | memoryview]:
    infos = sorted(file.infos, key=lambda info: -DTYPES[info.dtype].itemsize)
    yield _header(infos)
    for info in infos:
        yield value_bytes(file.tensor(info.name, as_bits=True, copy=False), info)


def _header(infos: Sequence[TensorInfo]) -> bytes:
    entries, at = {}, 0
    for info in infos:
        offsets = [at, at + info.nbytes]
        entries[info.name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": offsets}
        at += info.nbytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
