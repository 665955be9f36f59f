"""Optional libraries, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from ilwp_plugin.errors import MissingDependencyError

__all__ = ["optional"]


def optional(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises:
        MissingDependencyError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs {module.partition('.')[0]}, which cannot be imported ({error}); "
            f"pip install 'ilwp-plugin[{extra}]'"
        ) from error
