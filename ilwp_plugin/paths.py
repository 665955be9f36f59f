"""What a path leads to, before it is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ilwp_plugin.errors import FileError

__all__ = ["check_regular", "untrusted"]


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


def untrusted(path: str | os.PathLike[str]) -> str:
    """Why a torch.export program is not read."""
    return (
        f"{os.fspath(path)}: reading a torch.export program can run code that its maker put into it, and torch has no "
        "other way to read one; say --trust (in Python trust=True) if you know where it is from"
    )
