"""NNCF's names of operations, as its JSON configs have them, and the names of PyTorch modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import ConfigError, nearest

from .config import with_scopes

__all__ = ["ignores", "legacy_names", "match", "translate"]


def legacy_names(model: nn.Module, *, root: str | None = None) -> dict[str, tuple[str, ...]]:
    """What NNCF 2 calls each module, by the module's own name.

    A convolution `features.0` of a `MobileNet` is `MobileNet/Sequential[features]/NNCFConv2d[0]`, and its operation has
    `/conv2d_0` behind that. Whether a class has the prefix `NNCF` depends on the version and on how far the model has
    been transformed, so both spellings are given.

    Args:
        model: the model.
        root: class name of the model, where it is not that of its type.
    """

    def spelled(names: Sequence[str]) -> str:
        return "/".join(names)

    def walk(
        module: nn.Module, path: str, plain: list[str], prefixed: list[str]
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield path, tuple(dict.fromkeys((spelled(prefixed), spelled(plain))))
        for name, child in module.named_children():
            kind = type(child).__name__.removeprefix("NNCF")
            wraps = isinstance(child, _WRAPPED)
            yield from walk(
                child,
                f"{path}.{name}" if path else name,
                [*plain, f"{kind}[{name}]"],
                [*prefixed, f"{'NNCF' if wraps else ''}{kind}[{name}]"],
            )

    top = root or type(model).__name__
    return dict(walk(model, "", [top], [top]))


_WRAPPED = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._BatchNorm,
    nn.Embedding,
    nn.GroupNorm,
    nn.LayerNorm,
)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_OPERATION = re.compile(r"/[a-z_0-9]+_\d+$")


def match(pattern: str, model: nn.Module) -> list[str]:
    """The modules that a scope of an NNCF config names: layers, with those inside.

    Args:
        pattern: the name of a module (`features.0`), NNCF 2's name of a module or of its operation, or `{re}` and a
            regular expression that matches the whole name of a module, or is found in NNCF 2's name of an operation.
        model: the model.
    """
    names = legacy_names(model)
    if pattern.startswith("{re}"):
        expression = re.compile(pattern.removeprefix("{re}"))

        def named(path: str, spellings: Sequence[str]) -> bool:
            operations = (f"{name}/conv2d_0" for name in spellings)
            return bool(expression.fullmatch(path)) or any(expression.search(text) for text in operations)

        return [path for path, spellings in names.items() if path and named(path, spellings)]
    wanted = _OPERATION.sub("", pattern)
    exact = [path for path, spellings in names.items() if path and (path == wanted or wanted in spellings)]
    return [path for path in names if any(path == name or path.startswith(f"{name}.") for name in exact)]


def ignores(section: Mapping[str, Any], operation: str, group: str | None = None) -> bool:
    """Whether a section of an NNCF 2 config leaves an operation out.

    Args:
        section: of any algorithm.
        operation: NNCF 2's name.
        group: of a quantization section also `weights` or `activations`.
    """

    def listed(place: Mapping[str, Any], option: str) -> list[str]:
        value = place.get(option) or []
        return [value] if isinstance(value, str) else list(value)

    def named(patterns: Sequence[str]) -> bool:
        return any(
            re.search(pattern.replace("{re}", ""), operation) if "{re}" in pattern else pattern == operation
            for pattern in patterns
        )

    places = [section] if group is None else [section, section.get(group, {})]
    targets = [target for place in places for target in listed(place, "target_scopes")]
    return named([scope for place in places for scope in listed(place, "ignored_scopes")]) or bool(
        targets and not named(targets)
    )


def translate(config: IlwpConfig, model: nn.Module) -> IlwpConfig:
    """The configuration with all scopes as names of layers.

    Raises:
        ConfigError: a scope matches nothing in the model.
    """
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module._parameters.get("weight"), Tensor) and not isinstance(module, _NORMS)
    ]

    def names(patterns: Sequence[str], option: str) -> list[str]:
        found: dict[str, None] = {}
        for pattern in patterns:
            try:
                matched = match(pattern, model)
            except re.error as error:
                raise ConfigError(f"{option}: {pattern!r} is not a regular expression: {error}") from None
            if not matched:
                raise ConfigError(f"{option}: {pattern!r} matches nothing in the model; {nearest(pattern, layers)}")
            found.update(dict.fromkeys(name for name in matched if name in layers))
        return list(found)

    def named(ignored: Sequence[str], targets: Sequence[str]) -> tuple[list[str], list[str]]:
        chosen = names(targets, "target_scopes")
        if targets and not chosen:
            raise ConfigError(f"target_scopes: {list(targets)} match no layer with a weight")
        return names(ignored, "ignored_scopes"), chosen

    return with_scopes(config, named)
