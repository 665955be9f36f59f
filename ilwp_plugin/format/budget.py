"""How much memory reading may take besides the restored tensors, whatever a file claims."""

from __future__ import annotations

from ilwp_plugin.errors import LimitError

__all__ = ["Budget"]

_FILE_TIMES = 64
_ALWAYS = 1 << 26
"""Bytes that every file may take."""
_ALWAYS_WITHIN_A_LIMIT = 1 << 24
"""The same where the caller has set a limit."""


class Budget:
    """Bytes that are held until the file is forgotten; what is borrowed for a moment is checked against the rest.

    Args:
        file_bytes: size of the file. 64 times this and 64 MiB are allowed.
        where: its name, for messages.
        max_bytes: the caller's limit: so much and 16 MiB are allowed instead.
        keeps: whether anything is kept that could be found again; not where each tensor is looked at once.
    """

    def __init__(self, file_bytes: int, where: str, max_bytes: int | None = None, *, keeps: bool = True) -> None:
        self._keeps = keeps
        self.limit = _FILE_TIMES * file_bytes + _ALWAYS
        if max_bytes is not None:
            self.limit = max_bytes + _ALWAYS_WITHIN_A_LIMIT
        self._held = 0
        self._where = where

    def borrow(self, count: int, what: str) -> None:
        """Raises LimitError unless so many bytes more may be allocated for a while."""
        if self._held + count > self.limit:
            raise LimitError(
                f"{self._where}: {what} takes {self._held + count:,} bytes besides the restored tensors, the limit is "
                f"{self.limit:,}; read it with a larger max_bytes"
            )

    def hold(self, count: int, what: str) -> None:
        """The same for good."""
        self.borrow(count, what)
        self._held += count

    def keep(self, count: int) -> bool:
        """Whether to hold what could be found again: not more than half of the limit is spent on that."""
        if not self._keeps or not self.lends(count):
            return False
        self._held += count
        return True

    def lends(self, count: int) -> bool:
        """Whether so many bytes more may be allocated for a while, to be quicker."""
        return self._held + count <= self.limit // 2
