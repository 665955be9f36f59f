"""What pydantic finds wrong, in the words of this package: the path of the field, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ilwp_plugin.errors import ConfigError, IlwpError, nearest

__all__ = ["Translated", "config_error"]


M = TypeVar("M", bound="Translated")


class Translated(BaseModel):
    """A model of pydantic whose errors are ours.

    Attributes:
        expected: by field, what it takes, for fields of which pydantic's own words are many.
    """

    expected: ClassVar[Mapping[str, str]] = {}

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise config_error(error, type(self), expected=self.expected) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pydantic may validate without calling it

    @classmethod
    def model_validate(cls: type[M], obj: Any, **options: Any) -> M:
        """From a dictionary. Raises ConfigError."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise config_error(error, cls, expected=cls.expected) from None


def config_error(
    error: ValidationError, model: type[BaseModel], where: str = "", expected: Mapping[str, str] | None = None
) -> ConfigError:
    """All that pydantic found wrong, as one error of ours.

    Args:
        error: of pydantic.
        model: what was validated.
        where: path of the object that was validated, inside what the user has written.
        expected: by field, what it takes, for fields of which pydantic's own words are many.
    """
    messages = dict.fromkeys(_message(detail, model, where, expected or {}) for detail in error.errors())
    return ConfigError("; ".join(messages))


def _message(detail: ErrorDetails, model: type[BaseModel], where: str, expected: Mapping[str, str]) -> str:
    path, fields = _path(detail["loc"], model)
    own = detail.get("ctx", {}).get("error")
    if isinstance(own, IlwpError):  # of a validator of ours, which names the field
        return f"{where}.{own}" if where else str(own)
    shown = ".".join(map(str, [*([where] if where else []), *path]))
    if detail["type"] == "extra_forbidden":
        return f"unknown key {shown!r}; {nearest(str(path[-1]), fields)}"
    if path and str(path[0]) in expected:
        return f"{shown}: expected {expected[str(path[0])]}, got {detail['input']!r}"
    if len(path) > 1 and fields is not model.model_fields:
        return f"{shown}: {detail['msg']}, got {detail['input']!r}; known: {', '.join(fields)}"
    return f"{shown}: {detail['msg']}, got {detail['input']!r}"


def _path(loc: Iterable[int | str], model: type[BaseModel]) -> tuple[list[int | str], Mapping[str, Any]]:
    """The path without the members of unions, which pydantic names in it; and the fields of the innermost object."""
    path: list[int | str] = []
    inner: type[BaseModel] | None = model
    fields: Mapping[str, Any] = model.model_fields
    for number, part in enumerate(loc):
        if inner is not None and isinstance(part, str) and part in inner.model_fields:
            path.append(part)
            inner = _model_in(inner.model_fields[part].annotation)
        elif number == 0 or isinstance(part, int) or (inner is not None and part != inner.__name__):
            path.append(part)
        if inner is not None:
            fields = inner.model_fields
    return path, fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, be it in a container."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)
