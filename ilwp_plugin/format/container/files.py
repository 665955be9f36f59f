"""Files on disk: read whole, replaced atomically."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ilwp_plugin.errors import FileError, IlwpError

__all__ = ["read_file", "write_file"]

_LARGE = 1 << 26
"""Bytes from which on a file is mapped."""

_LONGEST = 160
"""Bytes of a name that the name of a temporary file repeats."""


def read_file(path: str | os.PathLike[str]) -> memoryview:
    """The content of a regular file; pipes, devices and folders are refused.

    Large files are mapped into memory, not read: whoever truncates one while it is in use ends the process. Files that
    `write_file` replaces stay as they were for those who have them.

    Raises:
        FileError: it cannot be read.
    """
    try:
        # Opening a pipe that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                what = "Is a directory" if stat.S_ISDIR(found.st_mode) else "it is no regular file"
                raise FileError(f"cannot read {os.fspath(path)}: {what}")
            if found.st_size >= _LARGE:
                return memoryview(mmap.mmap(handle, found.st_size, access=mmap.ACCESS_READ))
            data = file.read(found.st_size)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise FileError(f"cannot read {os.fspath(path)!r}: {error}") from error
    if len(data) != found.st_size:
        raise FileError(f"cannot read {os.fspath(path)}: it has changed while it was read")
    return memoryview(data)


def write_file(
    path: str | os.PathLike[str],
    chunks: Iterable[bytes | memoryview],
    verify: Callable[[memoryview], None] | None = None,
) -> None:
    """Replace a file atomically: at any moment the path holds the old content or the new, whole.

    The content goes to a new file in the same folder, is forced to disk, read back, and only then takes the place of
    the old one. New files of the same path that killed processes have left behind are removed.

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
        with contextlib.ExitStack() as held:
            temporary, file = _new_file(target, held)
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
        _remove_orphans(target)
    except IlwpError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:  # a NUL in the path; a loop of symbolic links
        raise FileError(f"cannot write {str(target)!r}: {error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _stem(target: Path) -> str:
    """What the names of temporary files of a path begin with; long names are cut, and told apart by their hash."""
    name = os.fsencode(target.name)
    if len(name) > _LONGEST:
        name = name[:_LONGEST] + b"~" + hashlib.sha256(name).hexdigest()[:16].encode()
    return f".{os.fsdecode(name)}."


def _new_file(target: Path, held: contextlib.ExitStack):  # type: ignore[no-untyped-def]
    """A new file beside the target, locked as long as its writer lives."""
    while True:
        temporary = target.with_name(f"{_stem(target)}{uuid.uuid4().hex}.tmp")
        file = held.enter_context(temporary.open("xb"))
        _lock(file.fileno())
        if os.fstat(file.fileno()).st_nlink:  # else another writer took it for an orphan before it was locked
            return temporary, file


def _lock(handle: int) -> bool:
    """Whether the file was locked by nobody, and now is by us; always, where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _orphans(target: Path) -> Iterator[Path]:
    pattern = re.compile(re.escape(_stem(target)) + r"[0-9a-f]{32}\.tmp")
    return (path for path in target.parent.iterdir() if pattern.fullmatch(path.name))


def _remove_orphans(target: Path) -> None:
    """Remove new files of the target that no living process writes to."""
    with contextlib.suppress(OSError):
        for path in _orphans(target):
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                try:
                    if _lock(handle):
                        path.unlink()
                finally:
                    os.close(handle)


def _read_back(written: Path, verify: Callable[[memoryview], None], target: Path) -> None:
    try:
        verify(read_file(written))
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
