"""The configuration as the conventions of Intel Neural Compressor (INC) have it."""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from neural_compressor.common.utils import DEFAULT_WHITE_LIST, GLOBAL, LOCAL
from neural_compressor.torch.quantization.config import OperatorConfig, TorchBaseConfig
from pydantic import BaseModel
from torch import nn

from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin import strict_json
from ilwp_plugin.config import LayerOverride
from ilwp_plugin.errors import ConfigError, nearest
from ilwp_plugin.models.torch_network import network_of
from ilwp_plugin.pipeline.plan import claim_all
from ilwp_plugin.recipes import RECIPES
from ilwp_plugin.recipes.base import AUTO, Request
from ilwp_plugin.recipes.grid import Grid, StepOptions
from ilwp_plugin.recipes.ilwp import IlwpOptions, chains_of

from .composition import ALGORITHM, Operator, Taken, compose
from .inputs import read_examples
from .state import operators_of

__all__ = ["LOCAL_FIELDS", "IlwpConfig", "core_config", "recipe_config", "schema"]

LOCAL_FIELDS = tuple(LayerOverride.model_fields)
"""What `set_local` may change; everything else is one for the model."""

_OVERRIDES = "overrides"
"""The field of the core that `set_local` stands for."""

_OF_CHAINS = frozenset(IlwpOptions.model_fields) - frozenset(StepOptions.model_fields) - {"loss_weight", "align"}
"""Fields of the coding of chains; the loss and alignment are good for other codes, too."""

_TYPE = "{type}"


@functools.cache
def _fields(options: type[BaseModel]) -> tuple[str, ...]:
    return tuple(name for name in options.model_fields if name != _OVERRIDES)


@functools.cache
def _lists(options: type[BaseModel]) -> frozenset[str]:
    """Fields whose value is a list, so that a list there is no set of values."""
    properties = options.model_json_schema()["properties"]

    def holds_a_list(field: Mapping[str, Any]) -> bool:
        return field.get("type") == "array" or any(holds_a_list(option) for option in field.get("anyOf", ()))

    return frozenset(name for name in _fields(options) if holds_a_list(properties[name]))


class IlwpConfig(TorchBaseConfig):  # type: ignore[misc]
    """Inter-layer weight prediction as an algorithm of INC.

    The fields are those of `ilwp_plugin.IlwpConfig`. A list of values for a field (but for those that hold lists) is a
    set to tune over. `set_local` gives some layers another `mode`, `bits` or `range`; `bits=None` there leaves them
    out.

        config = IlwpConfig(bits=6, anchor="fp16").set_local("features.3", IlwpConfig(bits=8))
        quantize(model, config)

    Args:
        white_list: "*" for all layers, or a list of module names (regular expressions that match from the start
            of a name, as everywhere in INC) and types.
        fields: those of `ilwp_plugin.IlwpConfig`, but for `overrides`.

    Raises:
        ConfigError: on any invalid field, with its path and the nearest valid name.
    """

    name = ALGORITHM
    recipe: ClassVar[str] = ""
    """Of the classes that `recipe_config` makes: the one recipe that they configure."""
    supported_configs: ClassVar[list[OperatorConfig]] = []

    def __init__(self, white_list: list[str | type] | str | None = DEFAULT_WHITE_LIST, **fields: Any) -> None:
        super().__init__(_checked_white_list(white_list))
        self.non_tunable_params = ["white_list", *_lists(self.options_type())]
        self._given: dict[str, Any] = {}
        self._base: IlwpConfig = self
        self._changes: dict[str, Any] = {}
        self._local_key = ""
        if _OVERRIDES in fields:
            raise ConfigError("overrides: INC's way is config.set_local(layer, IlwpConfig(...))")
        self._give({field: self._checked(field, value) for field, value in fields.items()})
        self._post_init()

    @classmethod
    def options_type(cls) -> type[BaseModel]:
        """The model of the fields."""
        return RECIPES[cls.recipe].options_type if cls.recipe else CoreConfig

    @classmethod
    def _core_of(cls, values: Mapping[str, Any]) -> CoreConfig:
        """A configuration of the core, from fields without sets of values."""
        return CoreConfig.from_dict({"recipes": [{"name": cls.recipe, **values}]} if cls.recipe else values)

    @classmethod
    def _validated(cls, values: Mapping[str, Any]) -> BaseModel:
        """All fields, from some."""
        core = cls._core_of(values)
        return core.recipe_list()[0].options if cls.recipe else core

    @classmethod
    def _checked(cls, field: str, value: Any) -> Any:
        """A value of a field, or each of a set of values, as the core accepts it."""

        def one(value: Any) -> Any:
            return getattr(cls._validated({field: value}), field)

        options = cls.options_type()
        if not isinstance(value, list) or field not in _fields(options) or field in _lists(options):
            return one(value)
        if not value:
            raise ConfigError(f"{field}: an empty set of values to tune over")
        checked = [one(option) for option in value]
        twice = [option for number, option in enumerate(checked) if option in checked[:number]]
        if twice:
            raise ConfigError(f"{field}: the set of values to tune over holds {twice[0]!r} twice")
        return checked

    def _give(self, values: Mapping[str, Any]) -> None:
        """Set some fields, and those whose defaults follow from them. Nothing is set where they do not fit together."""
        given = {**self._given, **values}
        options = self.options_type()
        single = {name: value[0] if self._is_set(name, value) else value for name, value in given.items()}
        followed = self._validated(single)
        self._given = given
        for name in _fields(options):
            object.__setattr__(self, name, given.get(name, getattr(followed, name)))

    @classmethod
    def _is_set(cls, field: str, value: Any) -> bool:
        return isinstance(value, list) and field not in _lists(cls.options_type())

    def _post_init(self) -> None:
        if self.white_list == DEFAULT_WHITE_LIST:
            self._global_config: IlwpConfig | None = type(self)(white_list=None, **self._given)
        for operator in self.white_list if isinstance(self.white_list, list) else ():
            self.set_local(operator, type(self)(white_list=None, **self._given))
        self._is_initialized = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "white_list":
            value = _checked_white_list(value)
            self._local_config = {key: c for key, c in self.local_config.items() if key not in (self.white_list or ())}
            self._global_config = None
        elif not name.startswith("_") and name not in _INTERNAL:
            self._give({name: self._checked(name, value)})
            self._post_init()
            return
        super().__setattr__(name, value)

    @classmethod
    def _generate_params_list(cls) -> list[str]:
        return [*_fields(cls.options_type()), "white_list"]

    def get_params_dict(self) -> dict[str, Any]:
        """The fields and their values."""
        return {field: getattr(self, field) for field in _fields(self.options_type())}

    @property
    def asks_for_chains(self) -> bool:
        """Whether it says how layers are to be predicted and coded."""
        given = {field for config in (self, *self.local_config.values()) for field in config._given}
        return bool(given & _OF_CHAINS)

    @property
    def tunable(self) -> dict[str, list[Any]]:
        """The fields that hold a set of values."""
        return {name: value for name, value in self.get_params_dict().items() if self._is_set(name, value)}

    @classmethod
    def from_core(cls, config: CoreConfig) -> IlwpConfig:
        """A configuration of the core, which has no `overrides`, as one of INC."""
        return cls(**config.differences())

    def core(self) -> CoreConfig:
        """The core's configuration, without white list and local configurations.

        Raises:
            ConfigError: a field holds a set of values.
        """
        for name, values in self.tunable.items():
            raise ConfigError(f"{name}: {values} is a set to tune over by autotune; one run takes one value")
        return self._core_of(self._given)

    # -- which layers ------------------------------------------------------------------------------------------------

    def get_model_info(self, model: nn.Module) -> list[Operator]:
        """Name and type of every layer that may be compressed, batch norms among them.

        Raises:
            ConfigError: the configuration takes none of them, or there are none.
        """
        if self.global_config is None and not self.local_config:
            raise ConfigError("white_list: None takes no layer, and no local configuration does")
        return operators_of(model)

    def taken(self, model: nn.Module, example_inputs: Any = None) -> Taken:
        """The layers that this changes, for a composition."""
        batch = read_examples(model, example_inputs).batch
        core = core_config(self.to_config_mapping(model_info=self.get_model_info(model)), model, batch)
        network = network_of(model)
        recipes = [recipe.resolved(False) for recipe in core.recipe_list()]
        claims, _ = claim_all(network, recipes, Request(batch))
        asked, left_over = set[str](), set[str]()
        for recipe, claimed in zip(recipes, claims, strict=True):
            layers = {network.layer_of(key) for key in claimed.tensors}
            automatic = isinstance(recipe, Grid) and recipe.options.weight_step == AUTO
            (left_over if automatic else asked).update(layers & set(network.layers))
        return Taken(frozenset(asked), frozenset(left_over))

    def set_local(self, operator_name_or_list: Any, config: IlwpConfig) -> IlwpConfig:
        """Another `mode`, `bits` or `range` for some layers.

        Args:
            operator_name_or_list: a name (a regular expression, matched from the start), a module type, or a list.
            config: what to change; its other fields have to be as here, or left alone.

        Raises:
            ConfigError: it changes what is one for the whole model.
        """
        if not isinstance(config, type(self)):
            raise ConfigError(f"set_local: expected an {type(self).__name__}, got {type(config).__name__}")
        for operator in operator_name_or_list if isinstance(operator_name_or_list, list) else [operator_name_or_list]:
            self.local_config[_operator_key(operator)] = config
        return self

    def to_config_mapping(
        self, config_list: list[IlwpConfig] | None = None, model_info: list[Operator] | None = None
    ) -> OrderedDict[Operator, IlwpConfig]:
        """The configuration of each layer. Of several local ones that match, a name counts more than a type.

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
        local_fields = [field for field in LOCAL_FIELDS if field in _fields(self.options_type())]
        for field, value in local._given.items():
            if field not in local_fields and value != getattr(self, field):
                raise ConfigError(
                    f"the configuration of {key!r} changes {field!r} to {value!r}, which is one for the whole model "
                    f"({getattr(self, field)!r}); local are {', '.join(local_fields) or 'none'}"
                )
        changes = {field: local._given[field] for field in local_fields if field in local._given}
        resolved = type(self)(white_list=None, **{**self._given, **changes})
        resolved._base, resolved._local_key = self, key
        resolved._changes = {f: v for f, v in changes.items() if f not in self._given or self._given[f] != v}
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
        if not isinstance(other, type(self)):
            return compose(self, other)
        total = copy.deepcopy(self)
        for field, value in other._given.items():
            # The fields of a configuration with a white list are those of its local ones, which the sum keeps.
            own_way = field in LOCAL_FIELDS and other.global_config is None
            if not own_way and value != getattr(self, field):
                raise ConfigError(
                    f"a sum takes over the local configurations of its second term, not its {field!r} "
                    f"({value!r}; the first has {getattr(self, field)!r}); give it a white list"
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
            chosen = {**self._given, **dict(zip(sets, values, strict=True))}
            config = type(self)(white_list=self.white_list, **chosen)
            for key, local in self.local_config.items():
                if key not in config.local_config:
                    config.set_local(key, copy.deepcopy(local))
            expanded.append(config)
        return expanded

    @classmethod
    def get_config_set_for_tuning(cls) -> IlwpConfig:
        """Bits and modes, small files first; of a recipe its defaults."""
        return cls() if cls.recipe else cls(bits=[3, 4, 5, 6, 8], mode=["collocated", "local", "none"])

    @classmethod
    def register_supported_configs(cls) -> None:
        """The operators that INC lists for this algorithm."""
        cls.supported_configs = [OperatorConfig(config=cls.get_config_set_for_tuning(), operators=[nn.Conv2d])]

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON has it; `from_dict` restores it without loss."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in self._given.items()}
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
        return type(self).from_dict(self.to_dict())


@functools.cache
def recipe_config(recipe: str) -> type[IlwpConfig]:
    """The class of configurations of one recipe. `ilwp`'s is IlwpConfig itself, whose fields are those of three.

    Raises:
        ConfigError: there is no such recipe.
    """
    if recipe == ALGORITHM:
        return IlwpConfig
    if recipe not in RECIPES:
        raise ConfigError(f"{recipe!r} is no recipe; {nearest(recipe, RECIPES)}")
    name = "".join(word.capitalize() for word in recipe.split("_")) + "Config"
    about = {"name": f"{ALGORITHM}_{recipe}", "recipe": recipe, "supported_configs": []}
    return type(name, (IlwpConfig,), {**about, "__doc__": f"The recipe {recipe!r} as an algorithm of INC."})


def schema(recipe: str = ALGORITHM) -> dict[str, Any]:
    """JSON schema of what `from_dict` of a configuration takes, for editors."""
    options = recipe_config(recipe).options_type()
    core = options.model_json_schema()
    fields = {}
    for name in _fields(options):
        field = dict(core["properties"][name])
        about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
        several = {"type": "array", "items": field, "minItems": 1, "description": "A set of values to tune over."}
        fields[name] = {**about, **field} if name in _lists(options) else {**about, "anyOf": [field, several]}
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
    definitions = {**core.get("$defs", {}), "fields": one}
    return {
        "title": "ILWP in Neural Compressor",
        "$defs": definitions,
        "anyOf": [{"$ref": "#/$defs/fields"}, both],
    }


def core_config(mapping: Mapping[Operator, Any], model: nn.Module, example_inputs: Any = None) -> CoreConfig:
    """INC's mapping of operators to configurations as one configuration of the core.

    What is mapped to no ilwp configuration, or to one without bits while others have some, is ignored.

    Raises:
        ConfigError: the mapping holds no ilwp configuration, a set of values, or a local configuration of layers
            that are in no chain.
    """
    own = {name: config for (name, _), config in mapping.items() if isinstance(config, IlwpConfig)}
    if not own:
        raise ConfigError("no layer has an ilwp configuration; the white list is empty")
    quantized = {name: config for name, config in own.items() if _has_bits(config)}
    taken = quantized or own
    for config in taken.values():
        config.core()  # no sets of values
    first = next(iter(taken.values()))
    base = first._base if _has_bits(first._base) or not quantized else first
    left_out = [name for name, _ in operators_of(model) if name not in taken]
    core = _leaving_out(base.core(), left_out)
    overrides = {name: config._changes for name, config in taken.items() if config._changes}
    if not overrides:
        return core
    options = core.ilwp()
    chains = () if options is None else chains_of(model, options, example_inputs=example_inputs, required=False)
    chained = {layer for chain in chains for layer in chain.layers}
    for key in sorted({taken[name].local_key for name in overrides}):
        if not any(name in chained for name, config in taken.items() if config.local_key == key):
            raise ConfigError(f"the configuration of {key!r} names no layer of a chain; chained are {sorted(chained)}")
    return core.replace(overrides={name: values for name, values in overrides.items() if name in chained})


def _has_bits(config: IlwpConfig) -> bool:
    return getattr(config, "bits", ALGORITHM) is not None


def _leaving_out(core: CoreConfig, layers: Collection[str]) -> CoreConfig:
    """The same, with more ignored scopes in every recipe."""
    if not layers:
        return core
    if core.recipes is None:
        return core.replace(ignored_scopes=[*core.ignored_scopes, *layers])
    recipes = [{**recipe, "ignored_scopes": [*recipe.get("ignored_scopes", ()), *layers]} for recipe in core.recipes]
    return core.replace(recipes=recipes)


_INTERNAL = frozenset(("params_list", "non_tunable_params", "global_config", "local_config"))


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
