"""From an ONNX model to an `.ilwp` file, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from ilwp_plugin.errors import FileError, FormatError
from ilwp_plugin.format import read
from ilwp_plugin.format.container import write_file

from .graph import check, key_in
from .protobuf import placeholders
from .session import graph_of, missing
from .tensors import put_values

__all__ = ["compress_model", "restore_model"]

_LARGEST = (1 << 31) - (1 << 20)
"""Bytes of a model in one file; protobuf holds no more than 2 GiB."""


def compress_model(source: str | os.PathLike[str] | ModelProto, config: Any = None, **options: Any) -> Any:
    """Compress an ONNX model: its tensors as `ilwp_plugin.compress` does it, and its graph along.

    Args:
        source: a file, or a model, which is not changed.
        config: an IlwpConfig, its fields, or the name of a preset; see `open_model`.
        options: further arguments of `ilwp_plugin.compress`: `calibration`, `evaluate`, `max_drop`, `target_bytes` and
            others.

    Returns:
        A `CompressedModel`; `save` writes the file that `restore_model` and `load_session` read.

    Raises:
        FileError: the file cannot be read.
        ConfigError, TensorError: see `ilwp_plugin.compress`.
    """
    from ilwp_plugin import compress

    from .network import open_model

    return compress(open_model(source, config), config, **options)


def restore_model(
    source: str | os.PathLike[str] | bytes,
    path: str | os.PathLike[str] | None = None,
    *,
    max_bytes: int | None = None,
) -> ModelProto:
    """The ONNX model of an `.ilwp` file.

    Args:
        source: the file, or its content.
        path: where to write the model; None writes nothing. A model of more than 2 GiB gets a second file beside it,
            `path` + ".data".
        max_bytes: refuse a file whose reading takes more memory than this.

    Raises:
        FileError: a file cannot be read or written.
        FormatError: it is no valid `.ilwp` file, or holds no ONNX model.
        TensorError: the model is not valid ONNX.
    """
    file = read(source, max_bytes=max_bytes)
    graph = graph_of(file)
    placeholders(graph)  # refuses values in other files
    try:
        model: ModelProto = ModelProto.FromString(graph)
    except Exception as error:  # protobuf has errors of its own
        raise FormatError(f"the graph is no ONNX model ({error})", "form") from error
    known = set(file.names)
    for tensor in model.graph.initializer:
        key = key_in(tensor)
        if key is not None:
            if key not in known:
                raise missing(key)
            put_values(tensor, file.tensor(key, as_bits=True, copy=False))
    large = model.ByteSize() > _LARGEST
    if not large:
        check(model)
    if path is not None:
        target = Path(path)
        if large:
            _save_apart(model, target)
        else:
            write_file(target, [model.SerializeToString()])
    return model


def _save_apart(model: ModelProto, path: Path) -> None:
    """Write a model whose values stand in a second file."""
    data = path.with_name(f"{path.name}.data")
    try:
        data.unlink(missing_ok=True)
        onnx.save(model, os.fspath(path), save_as_external_data=True, location=data.name)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}") from error
    check(os.fspath(path))
