"""The directory of a file: name, dtype, shape and storage of every tensor, in the order of the state dict.

Names are stored as the components between their dots: how many are shared with the name before, then the rest, each
spelled out once and numbered from then on. That takes about 7 bytes a tensor.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ilwp_plugin.errors import TensorError
from ilwp_plugin.stream import ByteReader, ByteWriter

__all__ = [
    "DTYPES",
    "Storage",
    "TensorInfo",
    "check_tensor",
    "check_name",
    "read_directory",
    "write_directory",
]

Storage = Literal["raw", "coded", "alias", "packed"]

_STORAGES: tuple[Storage, ...] = ("raw", "coded", "alias", "packed")
_SAME_SHAPE = 0x40
_MAX_NAME = 1024
_MAX_RANK = 64
_MAX_PRODUCT = 1 << 62

DTYPES: tuple[torch.dtype, ...] = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
"""Their positions are their numbers in the file: append only."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the state dict.

    Attributes:
        name: key in the state dict.
        dtype: one of DTYPES.
        shape: its dimensions.
        storage: "raw", as it is; "coded", in a chain; "packed", in a grid, batch-norm, sparse or fields section;
            "alias", the same values as an earlier tensor.
        alias_of: for an alias, the position of that tensor; else -1.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: Storage
    alias_of: int = -1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in memory; dimensions are Python integers and cannot overflow."""
        return self.numel * self.dtype.itemsize


def _component_length(reader: ByteReader, number: int) -> int:
    length = reader.varint()
    if length > _MAX_NAME:
        raise reader.fail(f"tensor {number}: a component of its name has {length} bytes, the most are {_MAX_NAME}")
    return length


def check_name(name: str) -> str | None:
    """What is wrong with a tensor's name, or None.

    Names are 1 to 1,024 bytes of UTF-8: components between dots, none empty, without control characters.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not 1 <= size <= _MAX_NAME:
        return f"has {size} bytes, expected 1 to 1,024"
    if any(unicodedata.category(c) == "Cc" for c in name):
        return "holds a control character"
    if "" in name.split("."):
        return "has an empty component between its dots"
    return None


def write_directory(writer: ByteWriter, tensors: Sequence[TensorInfo]) -> None:
    """Write the directory; each tensor is charged with its own entry."""
    known: dict[str, int] = {}
    before: list[str] = []
    shape: tuple[int, ...] = ()
    writer.varint(len(tensors))
    for info in tensors:
        with writer.charge("header" if info.storage == "coded" else "other", info.name):
            components = info.name.split(".")
            shared = 0
            while shared < min(len(before), len(components)) and before[shared] == components[shared]:
                shared += 1
            writer.varint(shared)
            writer.varint(len(components) - shared)
            for component in components[shared:]:
                if component in known:
                    writer.varint(known[component])
                else:
                    known[component] = len(known) + 1
                    text = component.encode()
                    writer.varint(0)
                    writer.varint(len(text))
                    writer.raw(text)
            before = components
            same = _SAME_SHAPE if info.shape == shape and info.storage != "alias" else 0
            writer.u8(DTYPES.index(info.dtype) | _STORAGES.index(info.storage) << 4 | same)
            if info.storage == "alias":
                writer.varint(info.alias_of)
            elif not same:
                writer.varint(len(info.shape))
                for dimension in info.shape:
                    writer.varint(dimension)
                shape = info.shape


def read_directory(reader: ByteReader) -> tuple[TensorInfo, ...]:
    """The inverse of `write_directory`. Raises FormatError."""
    known: list[str] = []
    before: list[str] = []
    shape: tuple[int, ...] = ()
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    count = reader.varint()
    if count > reader.remaining // 3:
        raise reader.fail(f"{count} tensors cannot be listed in {reader.remaining} bytes")
    for number in range(count):
        with reader.charge_later() as entry:
            shared, new = reader.varint(), reader.varint()
            if shared > len(before) or new > min(_MAX_NAME, reader.remaining):
                raise reader.fail(f"tensor {number}: its name shares or adds more components than there are")
            components = before[:shared]
            length = sum(map(len, components))
            for _ in range(new):
                token = reader.varint()
                if token == 0:
                    try:
                        known.append(str(reader.raw(_component_length(reader, number)), "utf-8"))
                    except UnicodeDecodeError:
                        raise reader.fail(f"tensor {number}: its name is not UTF-8") from None
                    token = len(known)
                if token > len(known):
                    raise reader.fail(f"tensor {number}: its name refers to an unknown component {token}")
                components.append(known[token - 1])
                length += len(components[-1])
                if length > _MAX_NAME:  # before it is put together: components repeat for free
                    raise reader.fail(f"tensor {number}: its name has more than {_MAX_NAME} characters")
            name = ".".join(components)
            fault = check_name(name)
            if fault is not None or any("." in component for component in components):
                raise reader.fail(f"tensor {number}: its name {fault or 'has a dot inside a component'}")
            if name in names:
                raise reader.fail(f"tensor {number}: duplicate name {name!r}")
            names.add(name)
            before = components
            code = reader.u8()
            dtype_number, storage_number = code & 0x0F, code >> 4 & 0x03
            if dtype_number >= len(DTYPES) or storage_number >= len(_STORAGES) or code & 0x80:
                raise reader.fail(f"{name}: unknown type or storage code {code:#x}")
            storage, alias_of = _STORAGES[storage_number], -1
            if storage == "alias":
                alias_of = reader.varint()
                if alias_of >= number:
                    raise reader.fail(f"{name}: an alias has to refer to an earlier tensor, got {alias_of}")
                target = tensors[alias_of]
                if target.storage == "alias" or target.dtype != DTYPES[dtype_number] or code & _SAME_SHAPE:
                    raise reader.fail(f"{name}: not a valid alias of {target.name}")
                info = TensorInfo(name, target.dtype, target.shape, storage, alias_of)
            else:
                if not code & _SAME_SHAPE:
                    rank = reader.varint()
                    if rank > _MAX_RANK:
                        raise reader.fail(f"{name}: {rank} dimensions, expected at most {_MAX_RANK}")
                    shape = tuple(reader.varint() for _ in range(rank))
                    if math.prod(dimension for dimension in shape if dimension) > _MAX_PRODUCT:
                        raise reader.fail(f"{name}: shape {shape} is larger than any memory")
                info = TensorInfo(name, DTYPES[dtype_number], shape, storage)
            entry.account = ("header" if storage == "coded" else "other", name)
        tensors.append(info)
    return tuple(tensors)


def check_tensor(name: str, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Raises TensorError where the format has no number for a dtype, or no room for a shape."""
    if len(shape) > _MAX_RANK or math.prod(dimension for dimension in shape if dimension) > _MAX_PRODUCT:
        raise TensorError(f"tensor {name!r} has shape {tuple(shape)}, which a .ilwp file cannot hold")
    if dtype not in DTYPES:
        raise TensorError(
            f"tensor {name!r} has dtype {dtype}, which a .ilwp file cannot hold; expected one of "
            + ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        )
