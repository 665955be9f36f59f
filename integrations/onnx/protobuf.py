"""The few bytes of protobuf that have to be understood where the package onnx is not installed."""

from __future__ import annotations

from collections.abc import Iterator

from ilwp_plugin.errors import FormatError

__all__ = ["LOCATION", "placeholders"]

LOCATION = "ilwp:"
"""What the place of a tensor's values begins with, where a file of ours holds them; its key there follows."""

_GRAPH, _INITIALIZER, _NAME, _EXTERNAL, _KEY, _VALUE = 7, 5, 8, 13, 1, 2
"""Numbers of fields, in ModelProto, GraphProto, TensorProto and StringStringEntryProto."""


def placeholders(model: bytes) -> dict[str, str]:
    """The initializers of a serialized model whose values a file of ours holds: their keys there, by name.

    Raises:
        FormatError: the bytes are no protobuf.
    """
    found: dict[str, str] = {}
    for graph in _fields(model, _GRAPH):
        for tensor in _fields(graph, _INITIALIZER):
            for entry in _fields(tensor, _EXTERNAL):
                value = b"".join(_fields(entry, _VALUE)).decode()
                if b"".join(_fields(entry, _KEY)) == b"location" and value.startswith(LOCATION):
                    found[b"".join(_fields(tensor, _NAME)).decode()] = value.removeprefix(LOCATION)
    return found


def _fields(message: bytes, number: int) -> Iterator[bytes]:
    """The contents of all fields of a number that hold bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise FormatError("the graph is cut off", "value")
            if tag >> 3 == number:
                yield message[at : at + length]
            at += length
        else:
            raise FormatError(f"the graph is no protobuf (wire type {kind})", "value")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise FormatError("the graph is cut off", "value")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
