"""Adapters to compression toolkits, found lazily by entry point: see `ilwp_plugin.adapters`."""

from ilwp_plugin.adapters import GROUP, load, names

__all__ = ["GROUP", "load", "names"]
