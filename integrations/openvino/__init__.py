"""OpenVINO: an IR model (`.xml` and `.bin`) in, a small file out, and back: as files, or straight into `ov.Core()`.

Restoring needs numpy only, `read_model` the package openvino too, compression torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .files import compress_model, read_model, restore_model
    from .network import open_model

__all__ = ["compress_model", "open_model", "read_model", "register", "restore_model"]

_HOMES = {"compress_model": "files", "restore_model": "files", "read_model": "files", "open_model": "network"}


def __getattr__(name: str) -> Any:
    """Imported when they are needed: a device has fewer packages than a workstation."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def register() -> None:
    """Nothing to enter: OpenVINO has no registry of algorithms."""
