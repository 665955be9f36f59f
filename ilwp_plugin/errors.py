"""Every error that the package raises on purpose, under one root; and its warnings.

Most are errors of Python's own as well, for code that catches these: what is wrong with an argument or with the content
of a file is a ValueError, a file that cannot be read or written an OSError, a library that is not there an ImportError,
an unknown name a LookupError. A message says what is wrong, where, what was expected, what was found and how to
mend it.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable

__all__ = [
    "CalibrationError",
    "ChainError",
    "ConfigError",
    "DataError",
    "FileError",
    "FormatError",
    "IlwpError",
    "IlwpWarning",
    "LimitError",
    "MissingDependencyError",
    "RegistryError",
    "StepError",
    "TensorError",
    "TrainingError",
    "nearest",
    "warn",
]


class IlwpError(Exception):
    """Root of all errors of the package."""


class ConfigError(IlwpError, ValueError):
    """A configuration is not valid: an unknown key, a wrong type, a value out of range."""


class RegistryError(IlwpError, LookupError):
    """A name is registered twice, or is not registered."""


class ChainError(IlwpError, ValueError):
    """No chain of convolutions can be built from a model, or its order cannot be found."""


class TensorError(IlwpError, ValueError):
    """A tensor cannot be compressed, or does not fit the model it is given to."""


class StepError(TensorError):
    """A step is so fine that codes would be larger than a file holds.

    Attributes:
        smallest: the smallest step that does, rounded up.
    """

    def __init__(self, message: str, smallest: float) -> None:
        super().__init__(message)
        self.smallest = smallest

    def __reduce__(self) -> tuple[type[StepError], tuple[str, float]]:
        return type(self), (str(self), self.smallest)


class FormatError(IlwpError, ValueError):
    """A file is not a valid `.ilwp` file: truncated, damaged, hostile or of a newer version.

    Attributes:
        code: which kind of malformation, one of `format.faults.FAULTS`; it stays the same while messages get better.
    """

    def __init__(self, message: str, code: str = "malformed") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[FormatError], tuple[str, str]]:
        return type(self), (str(self), self.code)


class FileError(IlwpError, OSError):
    """A file cannot be read or written: absent, no permission, no space."""


class LimitError(FormatError):
    """A file is valid so far, but restoring it would exceed the limit that the caller has set."""

    def __init__(self, message: str, code: str = "limit") -> None:
        super().__init__(message, code)


class TrainingError(IlwpError):
    """A training helper was set up in a way that cannot work."""


class CalibrationError(IlwpError, ValueError):
    """Calibration inputs that the model cannot be calibrated with, or a target that cannot be met."""


class DataError(IlwpError):
    """A data set is missing or its files are not what they should be."""


class MissingDependencyError(IlwpError, ImportError):
    """An optional library is needed and not installed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the known names and suggests the nearest one, for error messages."""
    names = list(known)
    match = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {match[0]!r}?" if match else ""
    shown = ", ".join(repr(n) for n in names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"known: {shown or 'none'}{hint}"


class IlwpWarning(UserWarning):
    """Something that works, but could work better."""


def warn(message: str) -> None:
    """Warn at the line outside the package and its integrations that led here."""
    own = ("ilwp_plugin", "ilwp_integrations")
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in own:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, IlwpWarning, stacklevel=level)
