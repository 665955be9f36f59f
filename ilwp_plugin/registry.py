"""One registry class for everything that is chosen by name: prediction modes, step rules, coders, sections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ilwp_plugin import plugins
from ilwp_plugin.errors import RegistryError, nearest

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects by name. A duplicate name raises; an unknown one raises and names the nearest match.

    A name is only ever looked up here; it never becomes an import path. Where a look-up finds nothing, the packages
    that announce plugins are imported, see `plugins`.

    >>> colours = Registry[str]("colour")
    >>> _ = colours.register("red")("#f00")
    >>> colours["red"]
    '#f00'
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters an object under `name`.

        Raises:
            RegistryError: the name is taken.
        """

        def enter(item: T) -> T:
            if name in self._items:
                raise RegistryError(f"{self.what} {name!r} is registered already, as {self._items[name]!r}")
            self._items[name] = item
            return item

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise RegistryError(f"unknown {self.what} {name!r}; {nearest(name, self._items)}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._items:
            plugins.load()
        return name in self._items

    def find(self, wanted: Callable[[T], bool]) -> T | None:
        """The first object that is wanted, in order of registration; None if there is none."""
        for _ in range(2):
            for item in self._items.values():
                if wanted(item):
                    return item
            plugins.load()
        return None

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def values(self) -> Iterator[T]:
        """The registered objects, in order of registration."""
        return iter(self._items.values())
