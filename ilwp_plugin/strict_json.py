"""JSON as the standard has it: no duplicate keys, no NaN, nothing infinite, no nesting that exhausts the stack."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ilwp_plugin.errors import ConfigError, FileError
from ilwp_plugin.paths import check_regular

__all__ = ["load", "loads"]


def load(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file that a user has written.

    Raises:
        FileError: it cannot be read.
        ConfigError: it is not JSON.
    """
    check_regular(path)
    try:
        return loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except ValueError as error:  # also what is not UTF-8
        raise ConfigError(f"{os.fspath(path)}: not JSON: {error}") from None


def loads(text: str) -> Any:
    """Parse JSON text. Raises ValueError with a message of one line."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key!r}")
            seen.add(key)
    return values


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
