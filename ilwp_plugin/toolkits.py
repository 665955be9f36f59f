"""Adapters to compression toolkits and to files of models, found lazily by entry point.

An adapter to a toolkit is a module with a function `register()`, announced in the entry-point group `ilwp.integrations`
under the name of its toolkit. One to a kind of model files is announced in the group `ilwp.files` under their suffix
without its dot. It has two functions: `open_model(path, config)` gives the `Network` that `compress` takes, and
`restore_model(source, path, max_bytes=None)` writes the model of an `.ilwp` file. Nothing is imported before it is
needed, so the core knows no toolkit. Third-party packages may announce their own.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ilwp_plugin.errors import MissingDependencyError, RegistryError, nearest

__all__ = [
    "FILES",
    "GROUP",
    "for_file",
    "function_for",
    "load",
    "names",
    "register_installed",
    "schema",
    "suffixes",
    "versions",
]

GROUP = "ilwp.integrations"
"""The entry-point group of toolkits."""

FILES = "ilwp.files"
"""The entry-point group of kinds of model files."""


def _announced(group: str = GROUP) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        if entry.name in found and found[entry.name].value != entry.value:
            raise RegistryError(
                f"two integrations are called {entry.name!r}: {found[entry.name].value} and {entry.value}; "
                "uninstall one of the packages"
            )
        found[entry.name] = entry
    return found


def names() -> list[str]:
    """The integrations that are announced, sorted; their toolkits need not be installed."""
    return sorted(_announced())


def load(name: str) -> ModuleType:
    """Import an integration.

    Raises:
        RegistryError: no integration has this name, or it is not a module with `register()`.
        MissingDependencyError: its toolkit is not installed.
    """
    announced = _announced()
    if name not in announced:
        raise RegistryError(f"unknown integration {name!r}; {nearest(name, announced)}")
    entry = announced[name]
    try:
        module = entry.load()
    except MissingDependencyError:
        raise
    except ImportError as error:
        extra = f"pip install 'ilwp-plugin[{name}]'" if entry.value.startswith("ilwp_integrations.") else "install it"
        raise MissingDependencyError(f"integration {name!r} cannot be imported: {error}; {extra}") from error
    if not isinstance(module, ModuleType) or not callable(getattr(module, "register", None)):
        raise RegistryError(f"integration {name!r}: {entry.value} is not a module with a function register()")
    return module


_DISTRIBUTIONS = {
    "nncf": ("nncf",),
    "inc": ("neural-compressor-pt", "neural-compressor"),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "pruning": ("torch-pruning",),
}
"""Packages of the toolkits of our own integrations."""


def versions() -> dict[str, str]:
    """Versions of Python, torch and the toolkits that are installed, by name; nothing is imported for it."""
    found = {"Python": platform.python_version()}
    packages = ["numpy", "torch", *(name for integration in names() for name in _DISTRIBUTIONS.get(integration, ()))]
    packages += [e.dist.name for name, e in _announced().items() if name not in _DISTRIBUTIONS and e.dist is not None]
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def suffixes() -> list[str]:
    """Of the model files that an integration reads and writes, with their dots, sorted."""
    return sorted(f".{name}" for name in _announced(FILES))


def for_file(
    path: str | os.PathLike[str], function: Literal["open_model", "restore_model"]
) -> Callable[..., Any] | None:
    """What an integration does with a kind of model files, see above; None where none knows their suffix.

    Raises:
        MissingDependencyError: what it needs is not installed.
        RegistryError: it has no such function.
    """
    entry = _announced(FILES).get(Path(path).suffix.removeprefix(".").casefold())
    if entry is None:
        return None
    try:
        found: Callable[..., Any] | None = getattr(entry.load(), function, None)
    except ImportError as error:
        own = entry.value.removeprefix("ilwp_integrations.")
        if error.name in ("torch", "scipy"):
            raise  # whoever compresses is told so in the same words for all files
        extra = f"pip install 'ilwp-plugin[{own}]'" if own != entry.value else "install it"
        raise MissingDependencyError(f"{os.fspath(path)}: a file of this kind needs more: {error}; {extra}") from error
    if not callable(found):
        raise RegistryError(f"files of kind {entry.name!r}: {entry.value} has no function {function}()")
    return found


def function_for(model: Any, name: str) -> Callable[..., Any] | None:
    """What an integration offers for models that its toolkit has changed.

    It is asked where the model holds a module of the toolkit's package, after which the integration's module is named:
    `ilwp_integrations.nncf` where there is one of `nncf`. The toolkit is imported already then.

    Args:
        model: a torch module.
        name: of a function of the integration.

    Returns:
        The function; None where no integration of a toolkit that is in the model has it.
    """
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    for entry in _announced().values():
        if entry.value.rpartition(".")[2] in packages:
            found: Callable[..., Any] | None = getattr(load(entry.name), name, None)
            if found is not None:
                return found
    return None


def schema(name: str) -> dict[str, Any]:
    """JSON schema of the configuration as a toolkit holds it: what the integration's function `schema()` returns.

    Raises:
        RegistryError: no integration has this name, or it offers no schema.
        MissingDependencyError: its toolkit is not installed.
    """
    module = load(name)
    offered: Callable[[], dict[str, Any]] | None = getattr(module, "schema", None)
    if offered is None:
        raise RegistryError(f"integration {name!r} has no configuration of its own; `ilwp schema` prints ilwp's")
    return offered()


def register_installed(only: Iterable[str] = ()) -> dict[str, str | None]:
    """Register the integrations whose toolkit is installed.

    Args:
        only: names; these have to be installed. Empty: all that are announced.

    Returns:
        By name None where it was registered, or why its toolkit cannot be imported.

    Raises:
        RegistryError: an unknown name.
        MissingDependencyError: a toolkit named by `only` is not installed, or the part of one is that is installed.
        IlwpError: what a registration raises, of an unsupported version for example.
    """
    wanted = list(only)
    result: dict[str, str | None] = {}
    for name in wanted or names():
        try:
            load(name).register()
            result[name] = None
        except MissingDependencyError as error:
            absent = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
            if wanted or absent is None or "." in absent or absent.startswith("ilwp"):
                raise
            result[name] = f"{absent} is not installed"
    return result
