"""Adapters to compression toolkits, found lazily by entry point.

An adapter is a module with a function `register()`, announced in the entry-point group `ilwp.integrations` under the
name of its toolkit. Nothing is imported before `load` is called, so the core knows no toolkit. Third-party packages may
announce their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from ilwp_plugin.errors import MissingDependencyError, RegistryError, nearest

__all__ = ["GROUP", "load", "names", "register_installed", "schema"]

GROUP = "ilwp.integrations"


def _announced() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
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
    except ImportError as error:
        extra = f"pip install 'ilwp-plugin[{name}]'" if entry.value.startswith("ilwp_integrations.") else "install it"
        raise MissingDependencyError(f"integration {name!r} cannot be imported: {error}; {extra}") from error
    if not isinstance(module, ModuleType) or not callable(getattr(module, "register", None)):
        raise RegistryError(f"integration {name!r}: {entry.value} is not a module with a function register()")
    return module


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
