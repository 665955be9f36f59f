"""Configurations of INC as JSON has them, and back; INC's own `to_dict` loses white lists and much of local ones."""

from __future__ import annotations

from typing import Any

from neural_compressor.common.base_config import BaseConfig, config_registry
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from torch import nn

from ilwp_plugin.errors import FormatError, nearest

__all__ = ["from_portable", "portable"]

_TYPE = "{type}"
_NOT_STORED = ("white_list", "model_info")


def portable(config: BaseConfig) -> dict[str, Any]:
    """What a configuration changes of its defaults; the fields have to be what JSON has."""
    default = type(config)()
    fields = {
        name: value
        for name in map(str, config.params_list)
        if name not in _NOT_STORED and (value := getattr(config, name)) != getattr(default, name)
    }
    values: dict[str, Any] = {"fields": fields}
    if config.white_list != default.white_list:
        listed = config.white_list
        values["white_list"] = [_key(operator) for operator in listed] if isinstance(listed, list) else listed
    if config.local_config:
        values["local"] = {_key(operator): portable(local) for operator, local in config.local_config.items()}
    return values


def from_portable(name: str, values: Any, where: str) -> BaseConfig:
    """The inverse.

    Args:
        name: of the algorithm.
        values: of `portable`.
        where: names the file in messages.

    Raises:
        FormatError: they are not.
    """
    known = config_registry.get_cls_configs()[FRAMEWORK_NAME]
    if name not in known:
        raise FormatError(f"{where}: an algorithm {name!r}, which this Neural Compressor lacks; {nearest(name, known)}")
    if not isinstance(values, dict) or not isinstance(values.get("fields"), dict):
        raise FormatError(f"{where}: no configuration of {name!r}")
    fields = dict(values["fields"])
    if "white_list" in values:
        listed = values["white_list"]
        fields["white_list"] = [_operator(key, where) for key in listed] if isinstance(listed, list) else listed
    try:
        config: BaseConfig = known[name](**fields)
    except TypeError as error:
        raise FormatError(f"{where}: no configuration of {name!r} that this Neural Compressor takes: {error}") from None
    for key, local in values.get("local", {}).items():
        config.local_config[_operator(key, where)] = from_portable(name, local, where)
    return config


def _key(operator: Any) -> str:
    return operator if isinstance(operator, str) else _TYPE + operator.__name__


def _operator(key: Any, where: str) -> Any:
    if not isinstance(key, str):
        raise FormatError(f"{where}: a configuration of {key!r}, which is no name")
    if not key.startswith(_TYPE):
        return key
    kind = getattr(nn, key.removeprefix(_TYPE), None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise FormatError(f"{where}: a configuration of {key!r}, which is no module of torch.nn")
    return kind
