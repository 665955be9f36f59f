"""Adapters to compression toolkits (`ilwp_integrations` and third-party packages), found lazily by entry point.

An adapter is a module with a function `register()`, announced in the entry-point group `ilwp.integrations` under the
name of its toolkit. Nothing is imported before `load` is called. Third-party packages may announce their own.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from ilwp_plugin.errors import MissingDependencyError, RegistryError, nearest

__all__ = ["GROUP", "load", "names"]

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
