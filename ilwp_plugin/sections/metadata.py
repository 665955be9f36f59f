"""The metadata section: one JSON object that the user gives along; nothing in it is needed to restore tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ilwp_plugin import strict_json
from ilwp_plugin.container import SectionBytes, SectionKind
from ilwp_plugin.errors import TensorError
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.stream import ByteReader

__all__ = ["decode_metadata", "encode_metadata"]

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


def encode_metadata(metadata: Mapping[str, Any]) -> SectionBytes:
    """The metadata section.

    Raises:
        TensorError: not a JSON object of finite numbers, nested at most 16 deep, of at most 1 MiB.
    """
    fault = _fault(metadata) if isinstance(metadata, dict) else f"is a {type(metadata).__name__}"
    text = b""
    if fault is None:
        text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > _MAX_BYTES:
            fault = f"takes {len(text)} bytes, the most are {_MAX_BYTES}"
    if fault is not None:
        raise TensorError(f"metadata {fault}; expected a JSON object")
    ledger = Ledger()
    ledger.charge("other", None, len(text))
    return SectionBytes(SectionKind.METADATA, [text], ledger)


def decode_metadata(reader: ByteReader) -> dict[str, Any]:
    """The inverse of `encode_metadata`. Raises FormatError."""
    if reader.remaining > _MAX_BYTES:
        raise reader.fail(f"metadata of {reader.remaining} bytes, the most are {_MAX_BYTES}")
    with reader.charge("other", None):
        text = bytes(reader.raw(reader.remaining))

    try:
        metadata = strict_json.loads(text.decode())
    except ValueError as error:
        raise reader.fail(f"metadata is not JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise reader.fail(f"metadata is a {type(metadata).__name__}, expected an object")
    if fault := _fault(metadata):
        raise reader.fail(f"metadata {fault}")
    return metadata
