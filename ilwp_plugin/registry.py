"""One registry class for everything that is chosen by name: prediction modes, step rules, coders, sections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ilwp_plugin.errors import RegistryError, nearest

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects by name. A duplicate name raises; an unknown one raises and names the nearest match.

    A name is only ever looked up here; it never becomes an import path.

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
        try:
            return self._items[name]
        except KeyError:
            raise RegistryError(f"unknown {self.what} {name!r}; {nearest(name, self._items)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def values(self) -> Iterator[T]:
        """The registered objects, in order of registration."""
        return iter(self._items.values())
