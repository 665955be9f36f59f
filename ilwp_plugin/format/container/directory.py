"""The directory of a file: name, dtype, shape and storage of every tensor, in the order of the state dict.

Names are stored as the components between their dots: how many are shared with the name before, then the rest, each
spelled out once and numbered from then on. That takes about 7 bytes a tensor, and less where the directory is packed.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.dtypes import DTYPES, dtype_of_number
from ilwp_plugin.format.stream import ByteReader, varint

__all__ = ["Storage", "TensorInfo", "check_name", "check_tensor", "directory_entries", "read_directory", "shared_sizes"]

Storage = Literal["raw", "coded", "alias"]

_STORAGES: tuple[Storage, ...] = ("raw", "coded", "alias")
_DTYPE_BITS = 5
_SAME_SHAPE = 0x80
_MAX_NAME = 1024
_MAX_RANK = 64
_MAX_PRODUCT = 1 << 62
_ENTRY_MEMORY = 768
"""Bytes of memory that an entry takes besides its name, about."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the state dict.

    Attributes:
        name: key in the state dict.
        dtype: a name of `dtypes.DTYPES`.
        shape: its dimensions.
        storage: "raw", as it is; "coded", in a section of another kind; "alias", the same values as an earlier tensor.
        alias_of: for an alias, the position of that tensor; else -1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: Storage
    alias_of: int = -1

    @property
    def numel(self) -> int:
        """Number of values; dimensions are Python integers and cannot overflow."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in memory."""
        return self.numel * DTYPES[self.dtype].itemsize


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
    if not name.isprintable() and any(unicodedata.category(c) == "Cc" for c in name):
        return "holds a control character"
    if "" in name.split("."):
        return "has an empty component between its dots"
    return None


def check_tensor(name: str, dtype: str, shape: Sequence[int]) -> None:
    """Raises TensorError where the format has no number for a dtype or no room for a shape; `name` names the tensor."""
    if len(shape) > _MAX_RANK or math.prod(dimension for dimension in shape if dimension) > _MAX_PRODUCT:
        raise TensorError(f"tensor {name!r} has shape {tuple(shape)}, which a .ilwp file cannot hold")
    if dtype not in DTYPES:
        raise TensorError(
            f"tensor {name!r} has dtype {dtype}, which a .ilwp file cannot hold; expected one of " + ", ".join(DTYPES)
        )


def directory_entries(tensors: Sequence[TensorInfo]) -> list[bytes]:
    """What the directory holds of each tensor; the directory is their number, a varint, and these."""
    known: dict[str, int] = {}
    before: list[str] = []
    shape: tuple[int, ...] = ()
    entries = []
    for info in tensors:
        components = info.name.split(".")
        shared = 0
        while shared < min(len(before), len(components)) and before[shared] == components[shared]:
            shared += 1
        entry = [varint(shared), varint(len(components) - shared)]
        for component in components[shared:]:
            if component in known:
                entry.append(varint(known[component]))
            else:
                known[component] = len(known) + 1
                text = component.encode()
                entry += [varint(0), varint(len(text)), text]
        before = components
        same = info.shape == shape and info.storage != "alias"
        kind = DTYPES[info.dtype].number | _STORAGES.index(info.storage) << _DTYPE_BITS
        entry.append(bytes([kind | _SAME_SHAPE if same else kind]))
        if info.storage == "alias":
            entry.append(varint(info.alias_of))
        elif not same:
            entry += map(varint, (len(info.shape), *info.shape))
            shape = info.shape
        entries.append(b"".join(entry))
    return entries


def shared_sizes(sizes: Sequence[int], length: int) -> list[int]:
    """How entries share the bytes that they take together once they are packed: in proportion.

    Args:
        sizes: of each entry, unpacked, in bytes.
        length: bytes in all.
    """
    ends = [0, *itertools.accumulate(sizes)]
    return [length * end // ends[-1] - length * start // ends[-1] for start, end in itertools.pairwise(ends)]


def read_directory(reader: ByteReader, budget: Budget) -> tuple[tuple[TensorInfo, ...], list[int]]:
    """The inverse of `directory_entries`, after their number: the tensors, and how many bytes the entry of each takes.

    Raises FormatError.
    """
    known: list[str] = []
    before: list[str] = []
    shape: tuple[int, ...] = ()
    tensors: list[TensorInfo] = []
    sizes: list[int] = []
    names: set[str] = set()
    count = reader.varint()
    if count > reader.remaining // 3:
        raise reader.fail("count", f"{count} tensors cannot be listed in {reader.remaining} bytes")
    budget.hold(_ENTRY_MEMORY * count, "the directory")
    for number in range(count):
        start = reader.position
        before = _read_name(reader, number, before, known)
        name = ".".join(before)
        budget.hold(4 * len(name), "names")
        if name in names:
            raise reader.fail("name", f"tensor {number}: duplicate name {name!r}")
        names.add(name)
        code = reader.u8()
        dtype, storage_number = dtype_of_number(code & (1 << _DTYPE_BITS) - 1), (code & ~_SAME_SHAPE) >> _DTYPE_BITS
        if dtype is None:
            raise reader.fail("dtype", f"{name}: unknown dtype {code & (1 << _DTYPE_BITS) - 1}")
        if storage_number >= len(_STORAGES):
            raise reader.fail("storage", f"{name}: unknown storage {storage_number}")
        storage = _STORAGES[storage_number]
        if storage == "alias":
            alias_of = reader.varint()
            if alias_of >= number:
                raise reader.fail("alias", f"{name}: an alias has to refer to an earlier tensor, got {alias_of}")
            target = tensors[alias_of]
            if target.storage == "alias" or target.dtype != dtype.name or code & _SAME_SHAPE:
                raise reader.fail("alias", f"{name}: not a valid alias of {target.name}")
            tensors.append(TensorInfo(name, target.dtype, target.shape, storage, alias_of))
        else:
            if not code & _SAME_SHAPE:
                shape = _read_shape(reader, name)
            tensors.append(TensorInfo(name, dtype.name, shape, storage))
        sizes.append(reader.position - start)
    return tuple(tensors), sizes


def _read_name(reader: ByteReader, number: int, before: list[str], known: list[str]) -> list[str]:
    """The components of a name."""
    shared, new = reader.varint(), reader.varint()
    if shared > len(before) or new > min(_MAX_NAME, reader.remaining):
        raise reader.fail("name", f"tensor {number}: its name shares or adds more components than there are")
    components = before[:shared]
    length = sum(map(len, components)) + shared
    for _ in range(new):
        token = reader.varint()
        if token == 0:
            size = reader.varint()
            if size > _MAX_NAME:
                raise reader.fail(
                    "name", f"tensor {number}: a component of its name has {size} bytes, the most are {_MAX_NAME}"
                )
            try:
                known.append(str(reader.raw(size), "utf-8"))
            except UnicodeDecodeError:
                raise reader.fail("name", f"tensor {number}: its name is not UTF-8") from None
            token = len(known)
        if token > len(known):
            raise reader.fail("name", f"tensor {number}: its name refers to an unknown component {token}")
        components.append(known[token - 1])
        length += len(components[-1]) + 1
        if length > _MAX_NAME + 1:  # before it is put together: components repeat for free
            raise reader.fail("name", f"tensor {number}: its name has more than {_MAX_NAME} characters")
    fault = check_name(".".join(components))
    if fault is not None or any("." in component for component in components):
        raise reader.fail("name", f"tensor {number}: its name {fault or 'has a dot inside a component'}")
    return components


def _read_shape(reader: ByteReader, name: str) -> tuple[int, ...]:
    rank = reader.varint()
    if rank > _MAX_RANK:
        raise reader.fail("shape", f"{name}: {rank} dimensions, expected at most {_MAX_RANK}")
    shape = tuple(reader.varint() for _ in range(rank))
    if math.prod(dimension for dimension in shape if dimension) > _MAX_PRODUCT:
        raise reader.fail("shape", f"{name}: shape {shape} is larger than any memory")
    return shape
