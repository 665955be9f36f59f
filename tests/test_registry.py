import pytest

from ilwp_plugin.errors import IlwpError, RegistryError
from ilwp_plugin.registry import Registry


def test_lookup_and_order() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("two")(2)
    registry.register("one")(1)
    assert registry["one"] == 1
    assert list(registry) == ["two", "one"]
    assert list(registry.values()) == [2, 1]
    assert "two" in registry and "three" not in registry


def test_duplicate_raises() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    with pytest.raises(RegistryError, match="number 'one' is registered already"):
        registry.register("one")(2)
    assert registry["one"] == 1


def test_unknown_name_suggests_the_nearest() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("seventeen")(17)
    with pytest.raises(IlwpError, match=r"unknown number 'sevnteen'.*did you mean 'seventeen'"):
        registry["sevnteen"]
