"""The two files of an OpenVINO model, as bytes: the constants apart from the rest, and together again.

The `.xml` file is the graph; each `Const` in it names a place in the `.bin` file. Both come back bit for bit where no
tensor changes: the `.xml` file is kept as it is, and so are the bytes of `.bin` that no tensor takes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin import strict_json
from ilwp_plugin.errors import FileError, FormatError
from ilwp_plugin.format import check_name
from ilwp_plugin.format.dtypes import DTYPES
from ilwp_plugin.paths import check_regular

__all__ = ["KIND", "Constant", "Graph", "constants_of", "graphs_of", "join", "read_ir", "split"]

KIND = "openvino"
"""Of the graph section."""

_SMALL = 64
"""Constants of fewer bytes stay with the graph: shapes, axes and scalars."""

_DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u64": "uint64",
    "u32": "uint32",
    "u16": "uint16",
    "u8": "uint8",
}
"""Of IR; values of others (4 bits, booleans) are taken as bytes, and strings stay with the graph."""


@dataclass(frozen=True)
class Constant:
    """A `Const` of a graph, at a place of the `.bin` file.

    Attributes:
        name: of the constant.
        dtype: as a file of ours names it.
        shape: of the tensor; (bytes,) of values that are packed.
        offset, size: its place, in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Graph:
    """The model, or the body of a loop or of a condition in it.

    Attributes:
        layers: by id, in the order of the file.
        sources: ids of the layers whose outputs are the inputs of a layer, by its id, in the order of its ports.
    """

    layers: Mapping[str, ElementTree.Element]
    sources: Mapping[str, Sequence[str]]


def read_ir(path: str | os.PathLike[str]) -> tuple[bytes, bytes]:
    """The contents of an `.xml` file and of the `.bin` file beside it.

    Raises:
        FileError: one of them cannot be read.
    """
    xml = Path(path)
    contents = []
    for part in (xml, xml.with_suffix(".bin")):
        check_regular(part)
        contents.append(part.read_bytes())
    return contents[0], contents[1]


def graphs_of(xml: bytes, where: str) -> list[Graph]:
    """The model and the bodies in it, the outer ones first.

    Args:
        xml: content of the `.xml` file.
        where: its name, for messages.

    Raises:
        FileError: it is no IR.
    """
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise FileError(f"{where}: no OpenVINO model: an IR has no document type")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise FileError(f"{where}: no OpenVINO model that can be read: {error}") from None
    if root.tag != "net" or root.find("layers") is None:
        raise FileError(f"{where}: no OpenVINO model: expected <net> with <layers>, found <{root.tag}>")
    found = []
    for element in [root, *root.iter("body"), *root.iter("then_body"), *root.iter("else_body")]:
        layers = {layer.get("id", ""): layer for layer in element.findall("layers/layer")}
        edges: dict[str, list[tuple[int, str]]] = {}
        for edge in element.findall("edges/edge"):
            edges.setdefault(edge.get("to-layer", ""), []).append(
                (_number(edge, "to-port"), edge.get("from-layer", ""))
            )
        found.append(Graph(layers, {layer: [source for _, source in sorted(own)] for layer, own in edges.items()}))
    return found


def constants_of(graphs: Iterable[Graph], size: int, where: str) -> dict[int, Constant]:
    """The constants that a file of ours can hold, by offset; of several at one place the first.

    Args:
        graphs: see `graphs_of`.
        size: of the `.bin` file, in bytes.
        where: name of the `.xml` file, for messages.

    Raises:
        FileError: a constant lies outside of the `.bin` file.
    """
    found: dict[int, Constant] = {}
    for graph in graphs:
        for layer in graph.layers.values():
            data = layer.find("data") if layer.get("type") == "Const" else None
            if data is None:
                continue
            offset, length = _number(data, "offset"), _number(data, "size")
            if offset < 0 or length < 0 or offset + length > size:
                raise FileError(
                    f"{where}: constant {layer.get('name')!r} lies at {offset} to {offset + length}, and its .bin file "
                    f"has {size} bytes; give the .bin file that belongs to it"
                )
            kind = data.get("element_type", "")
            shape = tuple(int(part) for part in (data.get("shape") or "").replace(",", " ").split())
            if length < _SMALL or kind == "string":
                continue
            dtype = _DTYPES.get(kind)
            if dtype is None or math.prod(shape) * DTYPES[dtype].itemsize != length:
                dtype, shape = "uint8", (length,)
            found.setdefault(offset, Constant(layer.get("name", ""), dtype, shape, offset, length))
    apart: dict[int, Constant] = {}
    end = 0
    for offset in sorted(found):  # what overlaps another one stays with the graph
        if offset >= end:
            apart[offset] = found[offset]
            end = offset + found[offset].size
    return apart


def split(
    xml: bytes, weights: bytes, constants: Mapping[int, Constant], keys: Mapping[int, str]
) -> tuple[bytes, dict[str, tuple[str, NDArray[np.generic]]]]:
    """The content of a graph section, and the tensors.

    Args:
        xml, weights: contents of the two files.
        constants: see `constants_of`.
        keys: of each, see `key_of`.

    Returns:
        The content, and by key the name of the dtype and the values as a file of ours carries them.
    """
    taken: dict[str, tuple[str, NDArray[np.generic]]] = {}
    rest, end = [], 0
    for offset, constant in constants.items():
        carrier = DTYPES[constant.dtype].carrier
        values = np.frombuffer(weights, carrier.newbyteorder("<"), constant.size // carrier.itemsize, offset)
        taken[keys[offset]] = (constant.dtype, values.reshape(constant.shape).astype(carrier))
        rest.append(weights[end:offset])
        end = offset + constant.size
    rest.append(weights[end:])
    head = {"xml": len(xml), "tensors": [[keys[offset], offset] for offset in constants]}
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + xml + b"".join(rest), taken


def key_of(name: str, is_weight: bool, others: Mapping[str, object] | set[str]) -> str:
    """A key that a file can hold, and that no other tensor has; that of a layer's weight ends in `.weight`."""
    base = ".".join(part for part in name.removesuffix("_compressed").split(".") if part) or "constant"
    base = base if check_name(base) is None else "".join(c if c.isalnum() or c in "._-/" else "_" for c in base)[:256]
    base = base.removesuffix(".weight") if is_weight else base
    number, key = 1, f"{base}.weight" if is_weight else base
    while key in others:
        number += 1
        key = f"{base}_{number}.weight" if is_weight else f"{base}_{number}"
    return key


def join(content: bytes, value_of: Callable[[str], NDArray[np.generic]]) -> tuple[bytes, bytes]:
    """The contents of the `.xml` and the `.bin` file; the inverse of `split`.

    Args:
        content: of the graph section.
        value_of: called with a key, gives the values in any dtype of as many bytes.

    Raises:
        FormatError: the content does not fit the tensors.
    """
    line, _, rest = content.partition(b"\n")
    try:
        head = strict_json.loads(line.decode())
        length, places = head["xml"], [(str(key), int(offset)) for key, offset in head["tensors"]]
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"the graph's head is none of OpenVINO's ({type(error).__name__})", "value") from None
    if not isinstance(length, int) or not 0 <= length <= len(rest):
        raise FormatError("the graph is cut off", "value")
    return rest[:length], b"".join(_pieces(rest[length:], places, value_of))


def _pieces(
    rest: bytes, places: Sequence[tuple[str, int]], value_of: Callable[[str], NDArray[np.generic]]
) -> Iterator[bytes]:
    written = used = 0
    for key, offset in places:
        if not 0 <= offset - written <= len(rest) - used:
            raise FormatError(f"{key}: at byte {offset} of the weights, where it cannot be", "value")
        yield rest[used : used + offset - written]
        used += offset - written
        values = np.asarray(value_of(key))
        piece = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        yield piece
        written = offset + len(piece)
    yield rest[used:]


def _number(element: ElementTree.Element, name: str) -> int:
    text = element.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else -1
