"""ONNX: a model in, a small file out, and back: as a model, or straight into a session of ONNX Runtime.

`load_session` needs numpy and onnxruntime only; the others need the package onnx, and compression torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .files import compress_model, restore_model
    from .network import open_model
    from .session import load_session

__all__ = ["compress_model", "load_session", "open_model", "register", "restore_model"]

_HOMES = {"compress_model": "files", "restore_model": "files", "load_session": "session", "open_model": "network"}


def __getattr__(name: str) -> Any:
    """Imported when they are needed: a device has fewer packages than a workstation."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def register() -> None:
    """Nothing to enter: ONNX has no registry of algorithms."""
