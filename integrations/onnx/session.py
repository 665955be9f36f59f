"""A session of ONNX Runtime straight from an `.ilwp` file, without torch and without a file in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format import IlwpFile, read
from ilwp_plugin.format.sections.graph import GraphSection

from .protobuf import placeholders, with_values

__all__ = ["KIND", "graph_of", "load_session", "missing", "session_of"]

KIND = "onnx"
"""Of the graph section."""

_ORDINARY = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13))
"""Types of tensors that numpy has, and that ONNX Runtime takes from it."""


def graph_of(file: IlwpFile) -> bytes:
    """The serialized model without its tensors. Raises FormatError where the file has none of ONNX."""
    for section in file.sections:
        if isinstance(section, GraphSection) and section.kind == KIND:
            return section.content
    raise FormatError("the file holds no ONNX model; `ilwp decompress` writes its tensors as .safetensors", "form")


def missing(key: str) -> FormatError:
    """What to raise where the graph names a tensor that is not there."""
    return FormatError(f"the graph wants a tensor {key!r}, which the file does not hold", "form")


def load_session(
    source: str | os.PathLike[str] | bytes,
    *,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    options: onnxruntime.SessionOptions | None = None,
    max_bytes: int | None = None,
) -> onnxruntime.InferenceSession:
    """Open an `.ilwp` file of an ONNX model.

    Args:
        source: the file, or its content.
        providers: of ONNX Runtime.
        options: of the session; the values of the tensors are added to them.
        max_bytes: refuse a file whose reading takes more memory than this.

    Raises:
        FileError: the file cannot be read.
        FormatError: it is no valid `.ilwp` file, or holds no ONNX model.
    """
    file = read(source, max_bytes=max_bytes)
    known = set(file.names)

    def value_of(key: str) -> NDArray[Any]:
        if key not in known:
            raise missing(key)
        return file.tensor(key, as_bits=True)

    return session_of(graph_of(file), value_of, providers, options)


def session_of(
    graph: bytes,
    value_of: Callable[[str], NDArray[Any]],
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """A session of a model and of values that stand elsewhere.

    Args:
        graph: the serialized model; where it names keys, it has no values.
        value_of: called with such a key; dtypes that numpy lacks come as their bits.
        providers, options: see `load_session`.
    """
    values: dict[str, NDArray[Any]] = {}
    others: dict[str, bytes] = {}
    for name, placeholder in placeholders(graph).items():
        value = value_of(placeholder.key)
        if placeholder.data_type in _ORDINARY:
            values[name] = value
        else:
            others[placeholder.key] = value.tobytes()
    if others:
        graph = with_values(graph, others.get)
    options = options or onnxruntime.SessionOptions()
    held = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in values.values()]
    options.add_external_initializers(list(values), held)
    return onnxruntime.InferenceSession(graph, options, providers=list(providers))
