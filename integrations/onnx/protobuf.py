"""The few bytes of protobuf that have to be understood where the package onnx is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ilwp_plugin.errors import FormatError

__all__ = ["LOCATION", "Placeholder", "placeholders", "with_values"]

LOCATION = "ilwp:"
"""What the place of a tensor's values begins with, where a file of ours holds them; its key there follows."""

_GRAPH, _INITIALIZER, _TYPE, _NAME, _RAW, _EXTERNAL, _PLACE, _KEY, _VALUE = 7, 5, 2, 8, 9, 13, 14, 1, 2
"""Numbers of fields, in ModelProto, GraphProto, TensorProto and StringStringEntryProto."""

_FUNCTION, _NODES_OF_FUNCTION, _NODE, _SPARSE, _ATTRIBUTE = 25, 7, 1, 15, 5
_TENSORS_OF_ATTRIBUTE, _GRAPHS_OF_ATTRIBUTE, _SPARSE_OF_ATTRIBUTE, _PARTS_OF_SPARSE = (5, 10), (6, 11), (22, 23), (1, 2)
"""Likewise, in ModelProto, FunctionProto, GraphProto, NodeProto, AttributeProto and SparseTensorProto."""

_DEEPEST = 64
"""Graphs inside each other."""


@dataclass(frozen=True)
class Placeholder:
    """An initializer whose values a file of ours holds.

    Attributes:
        key: of the tensor in the file.
        data_type: of TensorProto.
    """

    key: str
    data_type: int


def placeholders(model: bytes) -> dict[str, Placeholder]:
    """The initializers of a serialized model whose values a file of ours holds, by name.

    Raises:
        FormatError: the bytes are no protobuf, or a tensor has its values in some other file.
    """
    for entry in (entry for values in _all_tensors(model) for entry in _inner(values, _EXTERNAL)):
        if _text(entry, _KEY) == "location" and not (place := _text(entry, _VALUE)).startswith(LOCATION):
            raise FormatError(f"the graph has values in a file of its own, {place!r}", "form")
    found: dict[str, Placeholder] = {}
    for number, graph in _fields(model):
        for part, tensor in _fields(graph) if number == _GRAPH and isinstance(graph, bytes) else ():
            if part == _INITIALIZER and isinstance(tensor, bytes) and (placeholder := _placeholder(tensor)):
                found[_text(tensor, _NAME)] = placeholder
    return found


def with_values(model: bytes, value_of: Callable[[str], bytes | None]) -> bytes:
    """A serialized model in which initializers hold their values.

    Args:
        model: the model.
        value_of: called with the key of a placeholder; None leaves it.

    Raises:
        FormatError: the bytes are no protobuf.
    """

    def tensor(content: bytes) -> bytes:
        placeholder = _placeholder(content)
        values = value_of(placeholder.key) if placeholder is not None else None
        if values is None:
            return content
        kept = b"".join(_field(n, value) for n, value in _fields(content) if n not in (_RAW, _EXTERNAL, _PLACE))
        return kept + _field(_RAW, values)

    def graph(content: bytes) -> bytes:
        return _mapped(content, _INITIALIZER, tensor)

    return _mapped(model, _GRAPH, graph)


def _inner(message: bytes, *numbers: int) -> Iterator[bytes]:
    return (value for number, value in _fields(message) if number in numbers and isinstance(value, bytes))


def _all_tensors(model: bytes) -> Iterator[bytes]:
    """Wherever they are in a model."""
    for graph in _inner(model, _GRAPH):
        yield from _tensors_of(graph, _NODE)
    for function in _inner(model, _FUNCTION):
        yield from _tensors_of(function, _NODES_OF_FUNCTION)


def _tensors_of(graph: bytes, nodes: int, depth: int = 0) -> Iterator[bytes]:
    if depth > _DEEPEST:
        raise FormatError(f"the graph has graphs inside graphs, more than {_DEEPEST} deep", "value")
    if nodes == _NODE:
        yield from _inner(graph, _INITIALIZER)
        for sparse in _inner(graph, _SPARSE):
            yield from _inner(sparse, *_PARTS_OF_SPARSE)
    for node in _inner(graph, nodes):
        for attribute in _inner(node, _ATTRIBUTE):
            yield from _inner(attribute, *_TENSORS_OF_ATTRIBUTE)
            for sparse in _inner(attribute, *_SPARSE_OF_ATTRIBUTE):
                yield from _inner(sparse, *_PARTS_OF_SPARSE)
            for inner in _inner(attribute, *_GRAPHS_OF_ATTRIBUTE):
                yield from _tensors_of(inner, _NODE, depth + 1)


def _mapped(message: bytes, number: int, change: Callable[[bytes], bytes]) -> bytes:
    parts = [
        _field(n, change(value) if n == number and isinstance(value, bytes) else value) for n, value in _fields(message)
    ]
    return b"".join(parts)


def _placeholder(tensor: bytes) -> Placeholder | None:
    key, data_type = None, 0
    for number, value in _fields(tensor):
        if number == _EXTERNAL and isinstance(value, bytes) and _text(value, _KEY) == "location":
            place = _text(value, _VALUE)
            key = place.removeprefix(LOCATION) if place.startswith(LOCATION) else None
        elif number == _TYPE and isinstance(value, int):
            data_type = value
    return None if key is None else Placeholder(key, data_type)


def _text(message: bytes, number: int) -> str:
    return b"".join(value for n, value in _fields(message) if n == number and isinstance(value, bytes)).decode(
        "utf-8", "replace"
    )


class _Fixed(bytes):
    """The 4 or 8 bytes of a field of fixed size."""


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message: their numbers, and numbers or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, number = tag & 7, tag >> 3
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise FormatError(f"the graph is no protobuf (wire type {kind})", "value")
        if at + length > len(message):
            raise FormatError("the graph is cut off", "value")
        content = message[at : at + length]
        yield number, content if kind == 2 else _Fixed(content)
        at += length


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    if isinstance(value, _Fixed):
        return _number(number << 3 | (1 if len(value) == 8 else 5)) + value
    return _number(number << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


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
