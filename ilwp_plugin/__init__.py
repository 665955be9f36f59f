"""Inter-Layer Weight Prediction: convolutional networks in a file that is really small."""

import importlib
from typing import TYPE_CHECKING, Any

from ilwp_plugin._version import __version__
from ilwp_plugin.errors import MissingDependencyError

if TYPE_CHECKING:
    from ilwp_plugin.config import IlwpConfig
    from ilwp_plugin.format.integers import IntegerTensor
    from ilwp_plugin.ledger import LayerBytes, Ledger
    from ilwp_plugin.pipeline.compress import compress, estimate
    from ilwp_plugin.pipeline.file import CompressedModel, load, loads

__all__ = [
    "compress",
    "load",
    "CompressedModel",
    "IlwpConfig",
    "estimate",
    "loads",
    "Ledger",
    "LayerBytes",
    "IntegerTensor",
    "__version__",
]

_HOMES = {
    "CompressedModel": "pipeline.file",
    "IlwpConfig": "config",
    "IntegerTensor": "format.integers",
    "LayerBytes": "ledger",
    "Ledger": "ledger",
    "compress": "pipeline.compress",
    "estimate": "pipeline.compress",
    "load": "pipeline.file",
    "loads": "pipeline.file",
}


def __getattr__(name: str) -> Any:
    """Imported when they are needed, so that `ilwp_plugin.format` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"ilwp_plugin.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "scipy"):
            raise
        raise MissingDependencyError(
            f"ilwp_plugin.{name} needs {error.name}, which is not installed: pip install 'ilwp-plugin[torch]'; "
            "ilwp_plugin.format reads files without it"
        ) from error
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
