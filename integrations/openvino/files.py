"""From an OpenVINO model to an `.ilwp` file, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ilwp_plugin.errors import FileError, FormatError
from ilwp_plugin.format import read
from ilwp_plugin.format.container import write_file
from ilwp_plugin.format.sections.graph import GraphSection

from .ir import KIND, join

if TYPE_CHECKING:
    import openvino

__all__ = ["compress_model", "read_model", "restore_model"]


def compress_model(source: Any, config: Any = None, **options: Any) -> Any:
    """Compress an OpenVINO model: its constants as `ilwp_plugin.compress` does it, and its graph along.

    Preset "lossless" changes no value: both files come back bit for bit.

    Args:
        source: the `.xml` file, with its `.bin` file beside it; the contents of both; or an `openvino.Model`.
        config: an IlwpConfig, its fields, or the name of a preset.
        options: further arguments of `ilwp_plugin.compress`.

    Returns:
        A `CompressedModel`; `save` writes the file that `restore_model` and `read_model` read.

    Raises:
        FileError: a file cannot be read.
        ConfigError, TensorError: see `ilwp_plugin.compress`.
    """
    from ilwp_plugin import compress

    from .network import open_model

    if not isinstance(source, (str, os.PathLike, tuple)):
        source = _serialized(source)
    return compress(open_model(source, config), config, **options)


def restore_model(
    source: str | os.PathLike[str] | bytes,
    path: str | os.PathLike[str] | None = None,
    *,
    max_bytes: int | None = None,
) -> tuple[bytes, bytes]:
    """The contents of the `.xml` and the `.bin` file that an `.ilwp` file was made from.

    Args:
        source: the file, or its content.
        path: the `.xml` file to write, with a `.bin` file beside it; None writes nothing.
        max_bytes: refuse a file whose reading takes more memory than this.

    Raises:
        FileError: a file cannot be read or written.
        FormatError: it is no valid `.ilwp` file, or holds no OpenVINO model.
    """
    file = read(source, max_bytes=max_bytes)
    graph = next((s for s in file.sections if isinstance(s, GraphSection) and s.kind == KIND), None)
    if graph is None:
        raise FormatError("the file holds no OpenVINO model, only tensors; `ilwp decompress` writes these", "form")
    known = set(file.names)

    def value_of(key: str) -> Any:
        if key not in known:
            raise FormatError(f"the graph has a tensor {key!r} that the file does not hold", "value")
        return file.tensor(key, as_bits=True)

    xml, weights = join(graph.content, value_of)
    if path is not None:
        out = Path(path)
        if out.suffix.casefold() != ".xml":
            raise FileError(f"{out}: expected a name that ends in .xml; the .bin file is written beside it")
        write_file(out.with_suffix(".bin"), [weights])
        write_file(out, [xml])
    return xml, weights


def read_model(
    source: str | os.PathLike[str] | bytes, core: openvino.Core | None = None, *, max_bytes: int | None = None
) -> openvino.Model:
    """The model of an `.ilwp` file, without files in between.

    Args:
        source: the file, or its content.
        core: of OpenVINO; a new one, if none is given.
        max_bytes: refuse a file whose reading takes more memory than this.

    Raises:
        FileError: the file cannot be read.
        FormatError: it is no valid `.ilwp` file, or holds no OpenVINO model that OpenVINO can read.
    """
    import openvino

    xml, weights = restore_model(source, max_bytes=max_bytes)
    tensor = openvino.Tensor(np.frombuffer(weights, np.uint8)) if weights else openvino.Tensor(np.zeros(1, np.uint8))
    try:
        return (core or openvino.Core()).read_model(xml.decode(), tensor)
    except Exception as error:  # OpenVINO raises RuntimeError for whatever it meets
        reason = str(error).strip().splitlines()
        raise FormatError(f"no model that OpenVINO can read: {reason[-1] if reason else error}", "value") from error


def _serialized(model: Any) -> tuple[bytes, bytes]:
    """The contents of the files of an `openvino.Model`."""
    import tempfile

    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        try:
            openvino.serialize(model, path)
        except (TypeError, RuntimeError) as error:
            raise FileError(
                f"expected an .xml file, the contents of .xml and .bin, or an openvino.Model, got a "
                f"{type(model).__name__}: {str(error).strip().splitlines()[0]}"
            ) from error
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
