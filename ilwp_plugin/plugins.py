"""Recipes, coders, sections, prediction modes and step rules of other packages.

A package announces a module in the entry-point group `ilwp.plugins`; importing the module registers what it has. It is
imported when something is asked for that nobody has registered so far, whatever it is called: what a file or a
configuration says never becomes an import path.
"""

from __future__ import annotations

from ilwp_plugin.errors import warn

__all__ = ["GROUP", "load"]

GROUP = "ilwp.plugins"
"""The entry-point group in which a package announces the modules that register its parts."""

_loaded = False


def load() -> None:
    """Import every announced module, once in a process; a warning tells of those that cannot be imported."""
    global _loaded
    if _loaded:
        return
    _loaded = True  # before they look something up themselves
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # a broken package must not keep others from working
            warn(f"plugin {entry.name!r} ({entry.value}) cannot be imported: {type(error).__name__}: {error}")
