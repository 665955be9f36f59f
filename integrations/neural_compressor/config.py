"""The configuration as the conventions of Intel Neural Compressor (INC) have it."""

from __future__ import annotations

import copy
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from neural_compressor.common.utils import DEFAULT_WHITE_LIST, GLOBAL, LOCAL
from neural_compressor.torch.quantization.config import OperatorConfig, TorchBaseConfig
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin import strict_json
from ilwp_plugin.errors import ConfigError, nearest
from ilwp_plugin.models.chains import unwrap

__all__ = ["ALGORITHM", "LOCAL_FIELDS", "IlwpConfig", "Operator", "schema"]

ALGORITHM = "ilwp"

Operator = tuple[str, str]
"""Name of a module and of its type, as INC's mappings have them."""

LOCAL_FIELDS = ("mode", "bits", "range")
"""What `set_local` may change; everything else is one for the model."""

_LISTS = ("target_scopes", "ignored_scopes", "layers")
_FIELDS = tuple(name for name in CoreConfig.model_fields if name != "overrides")  # which is what set_local is for
_DEFAULTS = CoreConfig()
_TYPE = "{type}"


class IlwpConfig(TorchBaseConfig):  # type: ignore[misc]
    """Inter-layer weight prediction as an algorithm of INC.

    The fields are those of `ilwp_plugin.IlwpConfig`. A list of values for a field (but for those that hold names) is a
    set to tune over. `set_local` gives some layers another `mode`, `bits` or `range`; `bits=None` there leaves them
    out.

        config = IlwpConfig(bits=6, anchor="fp16").set_local("features.3", IlwpConfig(bits=8))
        quantize(model, config)

    Args:
        white_list: "*" for all convolutions, or a list of module names (regular expressions that match from the start
            of a name, as everywhere in INC) and types.
        fields: those of `ilwp_plugin.IlwpConfig`, but for `overrides`.

    Raises:
        ConfigError: on any invalid field, with its path and the nearest valid name.
    """

    name = ALGORITHM
    supported_configs: ClassVar[list[OperatorConfig]] = []

    def __init__(self, white_list: list[str | type] | str | None = DEFAULT_WHITE_LIST, **fields: Any) -> None:
        super().__init__(_checked_white_list(white_list))
        self.non_tunable_params = ["white_list", *_LISTS]
        self._local_key = ""
        if "overrides" in fields:
            raise ConfigError("overrides: INC's way is config.set_local(layer, IlwpConfig(...))")
        for field in fields:
            if field not in _FIELDS:
                CoreConfig.from_dict({field: None})  # raises, and names the nearest field
        for field in _FIELDS:
            setattr(self, field, fields.get(field, getattr(_DEFAULTS, field)))
        self._post_init()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "white_list":
            value = _checked_white_list(value)
            self._local_config = {key: c for key, c in self.local_config.items() if key not in (self.white_list or ())}
            self._global_config = None
        elif not name.startswith("_") and name not in _INTERNAL:
            value = _checked(name, value)
        super().__setattr__(name, value)

    @classmethod
    def _generate_params_list(cls) -> list[str]:
        return [*_FIELDS, "white_list"]

    def get_params_dict(self) -> dict[str, Any]:
        """The fields and their values."""
        return {field: getattr(self, field) for field in _FIELDS}

    @property
    def tunable(self) -> dict[str, list[Any]]:
        """The fields that hold a set of values."""
        return {name: value for name, value in self.get_params_dict().items() if isinstance(value, list)}

    def core(self) -> CoreConfig:
        """The core's configuration, without white list and local configurations.

        Raises:
            ConfigError: a field holds a set of values.
        """
        for name, values in self.tunable.items():
            raise ConfigError(f"{name}: {values} is a set to tune over by autotune; one run takes one value")
        return CoreConfig.from_dict(self.get_params_dict())

    # -- which layers ------------------------------------------------------------------------------------------------

    def get_model_info(self, model: nn.Module) -> list[Operator]:
        """Name and type of every layer that may be quantized: convolutions, with `weight_step` linear layers, too."""
        kinds = (nn.Conv2d,) if self.weight_step is None else (nn.modules.conv._ConvNd, nn.Linear)
        return [
            (name, type_before_parametrizations(module).__name__)
            for name, module in unwrap(model).named_modules()
            if isinstance(module, kinds)
        ]

    def set_local(self, operator_name_or_list: Any, config: IlwpConfig) -> IlwpConfig:
        """Another `mode`, `bits` or `range` for some layers.

        Args:
            operator_name_or_list: a name (a regular expression, matched from the start), a module type, or a list.
            config: what to change; its other fields have to be as here, or left alone.

        Raises:
            ConfigError: it changes what is one for the whole model.
        """
        if not isinstance(config, IlwpConfig):
            raise ConfigError(f"set_local: expected an IlwpConfig, got {type(config).__name__}")
        for operator in operator_name_or_list if isinstance(operator_name_or_list, list) else [operator_name_or_list]:
            self.local_config[_operator_key(operator)] = config
        return self

    def to_config_mapping(
        self, config_list: list[IlwpConfig] | None = None, model_info: list[Operator] | None = None
    ) -> OrderedDict[Operator, IlwpConfig]:
        """The configuration of each convolution. Of several local ones that match, a name counts more than a type.

        Raises:
            ConfigError: a pattern matches nothing, or a local configuration changes what is one for the model.
        """
        mapping: OrderedDict[Operator, IlwpConfig] = OrderedDict()
        for config in config_list or [self]:
            mapping.update(config._mapping(model_info or []))
        return mapping

    def _mapping(self, operators: list[Operator]) -> dict[Operator, IlwpConfig]:
        found: dict[Operator, IlwpConfig] = {}
        if self.global_config is not None:
            found = dict.fromkeys(operators, self._resolved(self))
        for key, local in sorted(self.local_config.items(), key=lambda item: not item[0].startswith(_TYPE)):
            matched = [operator for operator in operators if _matches(key, operator)]
            if not matched:
                known = [name for name, _ in operators] if not key.startswith(_TYPE) else [t for _, t in operators]
                raise ConfigError(f"{key!r} matches no layer; {nearest(key, dict.fromkeys(known))}")
            found.update(dict.fromkeys(matched, self._resolved(local, key)))
        return found

    def _resolved(self, local: IlwpConfig, key: str = "") -> IlwpConfig:
        """A local configuration with everything else from this one."""
        for field in _FIELDS:
            value = getattr(local, field)
            if field not in LOCAL_FIELDS and value not in (getattr(_DEFAULTS, field), getattr(self, field)):
                raise ConfigError(
                    f"the configuration of {key!r} changes {field!r} to {value!r}, which is one for the whole model "
                    f"({getattr(self, field)!r}); local are {', '.join(LOCAL_FIELDS)}"
                )
        changes = {field: getattr(local, field) for field in LOCAL_FIELDS}
        resolved = IlwpConfig(white_list=None, **{**self.get_params_dict(), **changes})
        resolved._local_key = key
        return resolved

    @property
    def local_key(self) -> str:
        """In a mapping: the key of the local configuration that an operator's comes from; empty for the global one."""
        return self._local_key

    def _get_op_name_op_type_config(self) -> Any:
        # Only INC's ComposableConfig calls this; it leaves out every global configuration without a word.
        raise ConfigError(
            "INC's own sum of configurations of several algorithms runs only the local ones of each, and drops the "
            "others silently; use ilwp_integrations.neural_compressor.compose(...)"
        )

    # -- sums, sets, files -------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Any:
        """Local configurations of two; with a configuration of another algorithm what `compose` makes."""
        if not isinstance(other, IlwpConfig):
            from .composition import compose

            return compose(self, other)
        total = copy.deepcopy(self)
        for field in _FIELDS:
            # The fields of a configuration with a white list are those of its local ones, which the sum keeps.
            own_way = field in LOCAL_FIELDS and other.global_config is None
            if not own_way and getattr(other, field) not in (getattr(self, field), getattr(_DEFAULTS, field)):
                raise ConfigError(
                    f"a sum takes over the local configurations of its second term, not its {field!r} "
                    f"({getattr(other, field)!r}; the first has {getattr(self, field)!r}); give it a white list"
                )
        for key, config in other.local_config.items():
            total.set_local(key, config)
        return total

    def expand(self) -> list[IlwpConfig]:
        """One configuration for each combination of the sets of values.

        Raises:
            ConfigError: a set is empty or holds a value twice.
        """
        for key, local in self.local_config.items():
            if any(values != self.tunable.get(field) for field, values in local.tunable.items()):
                raise ConfigError(f"the configuration of {key!r} holds a set of values; only the whole model is tuned")
        sets = self.tunable
        expanded = []
        for values in itertools.product(*sets.values()):
            chosen = {**self.get_params_dict(), **dict(zip(sets, values, strict=True))}
            config = IlwpConfig(white_list=self.white_list, **chosen)
            for key, local in self.local_config.items():
                if key not in config.local_config:
                    config.set_local(key, copy.deepcopy(local))
            expanded.append(config)
        return expanded

    @classmethod
    def get_config_set_for_tuning(cls) -> IlwpConfig:
        """Bits and modes, small files first."""
        return cls(bits=[3, 4, 5, 6, 8], mode=["collocated", "local", "none"])

    @classmethod
    def register_supported_configs(cls) -> None:
        """The operators that INC lists for this algorithm."""
        cls.supported_configs = [OperatorConfig(config=cls.get_config_set_for_tuning(), operators=[nn.Conv2d])]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `from_dict` restores it without loss."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in self.get_params_dict().items()}
        white_list = self.white_list
        if isinstance(white_list, list):
            white_list = [_operator_key(operator) for operator in white_list]
        values["white_list"] = white_list
        if not self.local_config:
            return values
        return {GLOBAL: values, LOCAL: {key: config.to_dict() for key, config in self.local_config.items()}}

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> IlwpConfig:
        """From a dictionary: the fields, or `global` with the fields and `local` with those by operator.

        Raises:
            ConfigError: an unknown key, or an invalid value.
        """
        if not isinstance(config_dict, Mapping):
            raise ConfigError(f"expected an object with the fields of IlwpConfig, got {type(config_dict).__name__}")
        if GLOBAL in config_dict or LOCAL in config_dict:
            for key in config_dict:
                if key not in (GLOBAL, LOCAL):
                    raise ConfigError(f"unknown key {key!r} beside 'global' and 'local'")
            local = config_dict.get(LOCAL, {})
            config = cls.from_dict(config_dict.get(GLOBAL, {}))
            for key, value in local.items():
                config.set_local(key, cls.from_dict(value))
        else:
            config = cls(**config_dict)
        return config

    @classmethod
    def from_json_file(cls, filename: str) -> IlwpConfig:
        """From a JSON file, as `to_json_file` writes it."""
        return cls.from_dict(strict_json.load(filename))

    def __deepcopy__(self, memo: dict[int, Any]) -> IlwpConfig:
        return IlwpConfig.from_dict(self.to_dict())


def schema() -> dict[str, Any]:
    """JSON schema of what `IlwpConfig.from_dict` takes, for editors."""
    core = CoreConfig.model_json_schema()
    fields = {}
    for name in _FIELDS:
        field = dict(core["properties"][name])
        about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
        options = {"type": "array", "items": field, "minItems": 1, "description": "A set of values to tune over."}
        fields[name] = {**about, **field} if name in _LISTS else {**about, "anyOf": [field, options]}
    fields["white_list"] = {
        "description": "'*' for all layers, or names (regular expressions) and types ('{type}Conv2d').",
        "default": DEFAULT_WHITE_LIST,
        "anyOf": [
            {"const": DEFAULT_WHITE_LIST},
            {"type": "null"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
        ],
    }
    one = {"type": "object", "properties": fields, "additionalProperties": False}
    both = {
        "type": "object",
        "properties": {
            GLOBAL: {"$ref": "#/$defs/fields"},
            LOCAL: {"type": "object", "additionalProperties": {"$ref": "#/$defs/fields"}},
        },
        "anyOf": [{"required": [GLOBAL]}, {"required": [LOCAL]}],
        "additionalProperties": False,
    }
    return {"title": "ILWP in Neural Compressor", "$defs": {"fields": one}, "anyOf": [{"$ref": "#/$defs/fields"}, both]}


_INTERNAL = frozenset(("params_list", "non_tunable_params", "global_config", "local_config"))


def _checked(field: str, value: Any) -> Any:
    """A value of a field, or each of a set of values, as the core accepts it."""

    def one(value: Any) -> Any:
        return getattr(CoreConfig.from_dict({field: value}), field)

    if not isinstance(value, list) or field in _LISTS or field not in _FIELDS:
        return one(value)
    if not value:
        raise ConfigError(f"{field}: an empty set of values to tune over")
    checked = [one(option) for option in value]
    twice = [option for number, option in enumerate(checked) if option in checked[:number]]
    if twice:
        raise ConfigError(f"{field}: the set of values to tune over holds {twice[0]!r} twice")
    return checked


def _checked_white_list(white_list: Any) -> Any:
    if white_list is None or white_list == DEFAULT_WHITE_LIST:
        return white_list
    if not isinstance(white_list, list) or not white_list:
        raise ConfigError(f"white_list: expected '*', None or a list of names and types, got {white_list!r}")
    return [_operator_key(operator) for operator in white_list]


def _operator_key(operator: str | Callable[..., Any]) -> str:
    """A name as it is, a type as `{type}Name`, which survives JSON; INC compares types by name, too."""
    if isinstance(operator, str):
        if not operator.startswith(_TYPE):
            try:
                re.compile(operator)
            except re.error as error:
                raise ConfigError(f"{operator!r} is not a regular expression: {error}") from None
        return operator
    if not isinstance(operator, type):
        raise ConfigError(f"expected the name or the type of a module, got {operator!r}")
    return _TYPE + operator.__name__


def _matches(key: str, operator: Operator) -> bool:
    name, kind = operator
    if key.startswith(_TYPE):
        return key == _TYPE + kind
    return re.match(key, name) is not None
