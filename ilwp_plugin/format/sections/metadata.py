"""The metadata section: one JSON object that the user gives along; nothing in it is needed to restore tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ilwp_plugin import strict_json
from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["MetadataSection"]

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 16


def _fault(value: Any, depth: int = 0) -> str | None:
    """What makes a value unfit to be metadata, or None."""
    if depth > _MAX_DEPTH:
        return f"nested deeper than {_MAX_DEPTH}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"holds {value}, which JSON has not"
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"has a key that is no string: {key!r}"
            if fault := _text_fault(key):
                return fault
            if fault := _fault(item, depth + 1):
                return fault
    elif isinstance(value, (list, tuple)):
        for item in value:
            if fault := _fault(item, depth + 1):
                return fault
    elif isinstance(value, str):
        return _text_fault(value)
    elif isinstance(value, int) and abs(value) >= 1 << 64:
        return "holds an integer of more than 64 bits"
    elif value is not None and not isinstance(value, (int, float)):
        return f"holds a {type(value).__name__}, which JSON has not"
    return None


def _text_fault(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate, which UTF-8 has not"
    return None


@SECTIONS.register("metadata")
class MetadataSection(Section):
    """One JSON object.

    Args:
        metadata: the object; it is copied.

    Raises:
        TensorError: not a JSON object of finite numbers, nested at most 16 deep, of at most 1 MiB.
    """

    number = 3
    name = "metadata"
    single = True
    ancillary = True

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        fault = _fault(metadata) if isinstance(metadata, dict) else f"is a {type(metadata).__name__}"
        self._text = b""
        if fault is None:
            self._text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode()
            if len(self._text) > _MAX_BYTES:
                fault = f"takes {len(self._text)} bytes, the most are {_MAX_BYTES}"
        if fault is not None:
            raise TensorError(f"metadata {fault}; expected a JSON object")

    @property
    def value(self) -> dict[str, Any]:
        """The object, a copy."""
        value: dict[str, Any] = strict_json.loads(self._text.decode())
        return value

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        writer.raw(self._text)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> MetadataSection:
        if reader.remaining > _MAX_BYTES:
            raise reader.fail("metadata", f"metadata of {reader.remaining} bytes, the most are {_MAX_BYTES}")
        with reader.charge(cls.part, None):
            text = bytes(reader.raw(reader.remaining))
        try:
            metadata = strict_json.loads(text.decode())
        except ValueError as error:
            raise reader.fail("metadata", f"metadata is not JSON: {error}") from None
        if not isinstance(metadata, dict):
            raise reader.fail("metadata", f"metadata is a {type(metadata).__name__}, expected an object")
        if fault := _fault(metadata):
            raise reader.fail("metadata", f"metadata {fault}")
        section = cls.__new__(cls)
        section._text = text  # as it was written, perhaps by another encoder
        return section
