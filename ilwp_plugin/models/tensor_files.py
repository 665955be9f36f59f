"""The only place that gives a file to torch.load: tensors and plain values come out, nothing in it runs."""

from __future__ import annotations

import os
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ilwp_plugin.paths import check_regular

__all__ = ["REMEDY", "StandIn", "load_tensors"]

REMEDY = "where the model can be made, torch.save(model.state_dict(), 'weights.pt') writes what can be read"

_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""What the first pickle of a file of torch before 1.6 holds."""


class StandIn:
    """What a file holds instead of a tensor or a plain value; nothing is known of it but the name of its class.

    Attributes:
        kind: the class, or the function that would have made it.
    """

    kind = ""

    def __new__(cls, *args: Any, **named: Any) -> StandIn:
        return object.__new__(cls)

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_tensors(path: str | os.PathLike[str], *, mapped: bool = False, stand_in: bool = False) -> Any:
    """What `torch.save` has written, of tensors, numbers, strings and containers of them; tensors come to the CPU.

    What torch.load hands to another reader, in one version or another, is refused before it sees it: TorchScript
    archives, which torch before 2.6 gives to torch.jit.load, and the tar files of torch before 0.2, in which torch
    before 2.6 runs code although it is told not to.

    Args:
        path: the file.
        mapped: leave the tensors in the file where they can be, which then must not be written to while they live.
        stand_in: put a `StandIn` where the file has an object of any other class, instead of refusing the file. Of
            torch before 2.6, and of files of torch before 1.6, nothing is replaced, and they are refused.

    Raises:
        FileError: the file cannot be read.
        ValueError: it holds something else; the message is a part of a sentence, in one line.
    """
    check_regular(path)
    try:
        with Path(path).open("rb") as file:
            start = file.read(32)
        zipped = start[:4] == b"PK\x03\x04"  # as torch tells them
        if zipped:
            _check_records(path)
        elif tarfile.is_tarfile(path):
            raise ValueError(f"it is a tar file, as torch wrote before version 0.2; {REMEDY}")
        elif _MAGIC not in start:
            pickled = start[:1] == b"\x80"
            raise ValueError(
                f"it is a pickle that torch.save has not written; {REMEDY}"
                if pickled
                else "neither safetensors nor torch.save has written it"
            )
        mapped = mapped and zipped and _is_stored(path)
        with _stand_ins(path if stand_in and zipped else None), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles and TypedStorage, which are of no concern to a reader
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load raises what it meets in a damaged file: IndexError, struct.error, ...
        raise ValueError(_reason(error)) from error


def _check_records(path: str | os.PathLike[str]) -> None:
    try:  # with torch's own reader, which may understand a strange archive in another way than zipfile
        names = torch._C.PyTorchFileReader(os.fspath(path)).get_all_records()
    except RuntimeError:
        names = []
    if "constants.pkl" in names:
        raise ValueError(
            "it is a TorchScript program; where it is trusted, torch.save(torch.jit.load(path).state_dict(), "
            "'weights.pt') writes what can be read"
        )
    if any(name.startswith("models/") for name in names):
        raise ValueError(
            "it is a torch.export program; where it is trusted, torch.save(torch.export.load(path).state_dict, "
            "'weights.pt') writes what can be read"
        )
    if "data.pkl" not in names:
        raise ValueError(f"it is damaged, or a zip file that torch.save has not written; {REMEDY}")


def _is_stored(path: str | os.PathLike[str]) -> bool:
    """Whether nothing in a zip file is packed, as torch writes them; what another tool has packed is to be inflated."""
    with zipfile.ZipFile(path) as archive:
        return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())


@contextmanager
def _stand_ins(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Inside the `with` block torch's reader makes a `StandIn` of whatever it does not know in this file."""
    find = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if path is None or find is None:
        yield
        return
    # From torch 2.6 on a name in a file can be made to mean another class than the one that is called so.
    kinds: list[Any] = [(type("_StandIn", (StandIn,), {"kind": name}), name) for name in find(path)]
    with torch.serialization.safe_globals(kinds):
        yield


def _reason(error: Exception) -> str:
    """Without torch's advice to let the file run its code."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds an object of {found.group(1)}, not tensors and plain values alone; {REMEDY}"
    lines = text.strip().splitlines()
    if isinstance(error, ValueError) and lines:
        return lines[0]
    return f"it is damaged, or holds other things than tensors and plain values ({type(error).__name__}); {REMEDY}"
