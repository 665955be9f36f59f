"""What pydantic finds wrong, in the words of this package: the path of the field, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ilwp_plugin.errors import ConfigError, nearest

__all__ = ["config_error"]


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
