"""Adapters to compression toolkits; see `ilwp_plugin.toolkits`, which finds them."""

from ilwp_plugin.toolkits import GROUP, load, names, register_installed, schema

__all__ = ["GROUP", "load", "names", "register_installed", "schema"]
