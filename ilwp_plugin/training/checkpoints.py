"""The file that a training is resumed from."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ilwp_plugin.errors import FileError
from ilwp_plugin.format.container import write_file
from ilwp_plugin.models.tensor_files import load_tensors
from ilwp_plugin.paths import check_regular

__all__ = ["reading_checkpoint", "write_checkpoint"]


def write_checkpoint(path: Path, content: Any) -> None:
    """Replace a checkpoint; a kill at any moment leaves the old one or the new one, whole.

    Args:
        path: where to.
        content: what `torch.load` takes for weights: tensors, numbers, strings, and containers of them.

    Raises:
        FileError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, [buffer.getbuffer()])


@contextlib.contextmanager
def reading_checkpoint(path: Path, training: str) -> Iterator[Any]:
    """The content of a checkpoint, its tensors on the CPU, to be taken up inside a `with` block.

    Args:
        path: the file.
        training: what the checkpoint should be of, for the message.

    Raises:
        FileError: it cannot be read, or the block cannot take up what it holds.
    """
    check_regular(path)
    try:
        yield load_tensors(path)
    except Exception as error:  # states that do not fit raise what they like
        raise FileError(
            f"{path}: no checkpoint of {training} ({type(error).__name__}: {error}); delete it to begin anew"
        ) from error
