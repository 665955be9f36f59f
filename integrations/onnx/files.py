"""From an ONNX model to an `.ilwp` file, and back."""

from __future__ import annotations

import os
from typing import Any

import onnx
from onnx import ModelProto

from ilwp_plugin.errors import FileError
from ilwp_plugin.format import read
from ilwp_plugin.format.sections.graph import GraphSection

from .graph import check, fill, load_model, take_out
from .session import KIND, graph_of

__all__ = ["compress_model", "restore_model"]


def compress_model(source: str | os.PathLike[str] | ModelProto, config: Any = None, **options: Any) -> Any:
    """Compress an ONNX model: its tensors as `ilwp_plugin.compress` does it, and its graph along.

    Args:
        source: a file, or a model, which is not changed.
        config: an IlwpConfig, its fields, or the name of a preset.
        options: further arguments of `ilwp_plugin.compress`.

    Returns:
        A `CompressedModel`; `save` writes the file that `restore_model` and `load_session` read.

    Raises:
        FileError: the file cannot be read.
        ConfigError, TensorError: see `ilwp_plugin.compress`.
    """
    from ilwp_plugin import compress

    from .network import OnnxNetwork

    model = ModelProto()
    model.CopyFrom(source if isinstance(source, ModelProto) else load_model(source))
    taken = take_out(model)
    compressed = compress(OnnxNetwork.of(model, taken), config, **options)
    return compressed.with_section(GraphSection(KIND, model.SerializeToString(deterministic=True)))


def restore_model(
    source: str | os.PathLike[str] | bytes,
    path: str | os.PathLike[str] | None = None,
    *,
    max_bytes: int | None = None,
) -> ModelProto:
    """The ONNX model of an `.ilwp` file.

    Args:
        source: the file, or its content.
        path: where to write the model; None writes nothing.
        max_bytes: refuse a file whose reading takes more memory than this.

    Raises:
        FileError: a file cannot be read or written.
        FormatError: it is no valid `.ilwp` file, or holds no ONNX model.
    """
    file = read(source, max_bytes=max_bytes)
    model: ModelProto = ModelProto.FromString(graph_of(file))
    fill(model, lambda key: file.tensor(key, as_bits=True))
    check(model)
    if path is not None:
        try:
            onnx.save(model, os.fspath(path))
        except OSError as error:
            raise FileError(f"cannot write {os.fspath(path)}: {error}") from error
    return model
