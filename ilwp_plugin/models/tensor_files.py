"""The only place that gives a file to torch.load: tensors and plain values come out, nothing in it runs."""

from __future__ import annotations

import os
import re
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ilwp_plugin.errors import FileError

__all__ = ["check_regular", "load_tensors"]


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises FileError where a path is no regular file that can be read (a pipe would be waited for, for ever)."""
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            what = "it is a directory" if stat.S_ISDIR(mode) else "it is no regular file"
            raise FileError(f"cannot read {os.fspath(path)}: {what}")
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise FileError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise FileError(f"cannot read {os.fspath(path)!r}: {error}") from error


def load_tensors(path: str | os.PathLike[str], *, mapped: bool = False) -> Any:
    """What `torch.save` has written, of tensors, numbers, strings and containers of them; tensors come to the CPU.

    What torch.load hands to another reader, in one version or another, is refused before it sees it: TorchScript
    archives, which torch before 2.6 gives to torch.jit.load, and the tar files of torch before 0.2, in which torch
    before 2.6 runs code although it is told not to.

    Args:
        path: the file.
        mapped: leave the tensors in the file where they can be, which then must not be written to while they live.

    Raises:
        FileError: the file cannot be read.
        ValueError: it holds something else; the message is a part of a sentence, in one line.
    """
    check_regular(path)
    try:
        with Path(path).open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # as torch tells them
        if zipped:
            _check_records(torch._C.PyTorchFileReader(os.fspath(path)).get_all_records())
        elif tarfile.is_tarfile(path):
            raise ValueError("it is a tar file, as torch wrote before version 0.2")
        if mapped:
            mapped = zipped and _is_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles and TypedStorage, which are of no concern to a reader
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises what it meets in a damaged file: IndexError, struct.error, ...
        raise ValueError(_reason(error)) from error


def _check_records(names: Sequence[str]) -> None:
    if "constants.pkl" in names:
        raise ValueError("it is a TorchScript program")
    if any(name.startswith("models/") for name in names):
        raise ValueError("it is a torch.export program")
    if "data.pkl" not in names:
        raise ValueError("it is a zip file, but none that torch.save has written")


def _is_stored(path: str | os.PathLike[str]) -> bool:
    """Whether nothing in a zip file is packed, as torch writes them; what another tool has packed is to be inflated."""
    with zipfile.ZipFile(path) as archive:
        return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())


def _reason(error: Exception) -> str:
    """Without torch's advice to let the file run its code."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds an object of {found.group(1)}, not tensors and plain values alone"
    lines = text.strip().splitlines()
    if not lines or "weights_only" in text or "eights only" in text:
        return f"it is damaged, or holds other things than tensors and plain values ({type(error).__name__})"
    return lines[0]
