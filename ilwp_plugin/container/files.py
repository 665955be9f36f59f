"""Files on disk: read whole, replaced atomically."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from ilwp_plugin.errors import FileError, IlwpError

__all__ = ["read_file", "write_file"]


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a file.

    Raises:
        FileError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise FileError(f"cannot read {os.fspath(path)!r}: {error}") from error


def write_file(
    path: str | os.PathLike[str],
    chunks: Iterable[bytes | memoryview],
    verify: Callable[[bytes], None] | None = None,
) -> None:
    """Replace a file atomically: at any moment the path holds the old content or the new, whole.

    The content goes to a new file in the same folder, is forced to disk, read back, and only then takes the place of
    the old one.

    Args:
        path: where to.
        chunks: the content, in pieces.
        verify: is given what was read back; raises if that is not what it should be.

    Raises:
        FileError: it cannot be written; the old file is as it was and nothing is left behind.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        if target.exists() and not target.is_file():
            raise FileError(f"cannot write {target}: it is no regular file")
        target = target.resolve()  # of a symbolic link the file behind it is replaced
        temporary = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex}.tmp")
        with temporary.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            temporary.chmod(target.stat().st_mode & 0o777)
        if verify is not None:
            _read_back(temporary, verify, target)
        temporary.replace(target)
        temporary = None
        _sync_folder(target.parent)
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:  # a NUL in the path; a loop of symbolic links
        raise FileError(f"cannot write {str(target)!r}: {error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _read_back(written: Path, verify: Callable[[bytes], None], target: Path) -> None:
    try:
        verify(written.read_bytes())
    except IlwpError as error:
        raise FileError(f"cannot write {target}: what was read back is wrong: {error}") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
