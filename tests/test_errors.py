from ilwp_plugin import errors
from ilwp_plugin.errors import IlwpError


def test_every_error_has_one_root() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) > 8 and all(issubclass(c, (IlwpError, UserWarning)) for c in classes)
