"""What sections that hold tensors of the directory have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ilwp_plugin.container import TensorInfo
from ilwp_plugin.stream import ByteReader

__all__ = ["RestoredTensors", "read_info"]


class _Holder(Protocol):
    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""


class RestoredTensors:
    """A section whose `tensors` are at hand as they are restored."""

    @property
    def names(self: _Holder) -> list[str]:
        """Of its tensors."""
        return list(self.tensors)

    def restore(self: _Holder, name: str) -> Tensor:
        """A tensor, new."""
        return self.tensors[name].clone()


def read_info(reader: ByteReader, directory: Sequence[TensorInfo], section: str) -> TensorInfo:
    """The directory entry that a section names by its number. Raises FormatError, with `section` in words."""
    number = reader.varint()
    if number >= len(directory):
        raise reader.fail(f"{section} refers to tensor {number}, the file has {len(directory)}")
    return directory[number]
