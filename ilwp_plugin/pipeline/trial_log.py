"""The trials of a search in a file, so that it goes on after a kill."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ilwp_plugin import strict_json
from ilwp_plugin.errors import ConfigError, FileError, IlwpError
from ilwp_plugin.recipes.base import Knobs

__all__ = ["Log", "Trial", "open_log"]


@dataclass(frozen=True)
class Trial:
    """A file that was tried: its size in bytes, and what the model restored from it scores (None: not evaluated)."""

    knobs: Knobs
    nbytes: int
    score: float | None = None


class _Record(BaseModel):
    """A trial as a line of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    knobs: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    nbytes: Annotated[int, Field(ge=0)]
    score: Annotated[float, Field(allow_inf_nan=False)] | Literal["nan", "inf", "-inf"] | None

    @classmethod
    def of(cls, trial: Trial) -> _Record:
        score: Any = trial.score
        if score is not None and not math.isfinite(score):
            score = str(score)  # JSON has no such numbers
        return cls(knobs=asdict(trial.knobs), nbytes=trial.nbytes, score=score)

    def trial(self) -> Trial:
        return Trial(Knobs(**self.knobs), self.nbytes, None if self.score is None else float(self.score))


class _Head(BaseModel):
    """The first line."""

    model_config = ConfigDict(extra="forbid", strict=True)

    search: str


class Log:
    """The trials so far, kept in a file of JSON lines if there is a path.

    Args:
        path: the file; None keeps nothing. `open_log` sees to it that only one search writes it.
        fingerprint: of everything that a trial depends on.
        scored: whether trials are evaluated; None where that is not known.

    Raises:
        ConfigError: the file belongs to another search, or is no record of trials.
        FileError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str, *, scored: bool | None = None) -> None:
        self._path = None if path is None else Path(path)
        self.trials: dict[Knobs, Trial] = {}
        if self._path is None:
            return
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise FileError(f"cannot read {self._path}: {error.strerror or error}") from error
        lines = content.splitlines(keepends=True)
        unfinished = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""  # by a kill
        head = json.dumps({"search": fingerprint}) + "\n"
        if lines or not head.encode().startswith(unfinished):
            self._read(lines or [unfinished], fingerprint, scored)
        if unfinished:
            self._cut(len(content) - len(unfinished))
        if not lines:
            self._append(head)

    def _read(self, lines: Sequence[bytes], fingerprint: str, scored: bool | None) -> None:
        line = 0
        try:
            for line, text in enumerate(lines):
                values = strict_json.loads(text.decode())
                if line == 0:
                    self._check_search(_Head.model_validate(values).search, fingerprint)
                    continue
                trial = _Record.model_validate(values).trial()
                if scored is not None and scored is (trial.score is None):
                    raise ValueError("a trial without its score" if scored else "a score without `evaluate`")
                self.trials[trial.knobs] = trial
        except IlwpError:
            raise
        except (ValueError, TypeError) as error:  # those of pydantic and json are ValueErrors
            reason = str(error)
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                reason = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
            raise ConfigError(
                f"{self._path}: not a record of trials (line {line + 1}: {reason}); give a new path"
            ) from None

    def _check_search(self, found: str, fingerprint: str) -> None:
        if found != fingerprint:
            raise ConfigError(
                f"{self._path}: the trials of another model, configuration, calibration, target, metadata or "
                "`evaluation`, or of another version of this package; give a new path"
            )

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        self.trials[trial.knobs] = trial
        if self._path is not None:
            self._append(_Record.of(trial).model_dump_json() + "\n")

    def _append(self, line: str) -> None:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line)
        except OSError as error:
            raise FileError(f"cannot write {self._path}: {error.strerror or error}") from error

    def _cut(self, length: int) -> None:
        assert self._path is not None
        try:
            os.truncate(self._path, length)
        except OSError as error:
            raise FileError(f"cannot write {self._path}: {error.strerror or error}") from error


@contextmanager
def open_log(path: str | os.PathLike[str] | None, fingerprint: str, scored: bool) -> Iterator[Log]:
    """A log that nobody else writes meanwhile; a lock file stands beside it.

    Raises:
        FileError: another search writes it, or it cannot be read or written.
        ConfigError: see `Log`.
    """
    if path is None:
        yield Log(None, fingerprint)
        return
    if not Path(path).absolute().parent.is_dir():
        raise FileError(f"cannot write {os.fspath(path)}: there is no folder {Path(path).parent}")
    lock = FileLock(f"{os.fspath(path)}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileError(
            f"{os.fspath(path)}: another search is keeping its trials there; wait for it, or give a new path"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise FileError(f"cannot write {os.fspath(path)}.lock: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield Log(path, fingerprint, scored=scored)
    finally:
        lock.release()
