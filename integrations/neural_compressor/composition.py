"""Several algorithms on one model, none of them dropped."""

from __future__ import annotations

import importlib.util
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from neural_compressor.common.base_config import BaseConfig, ComposableConfig, config_registry
from neural_compressor.common.utils import Mode
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from neural_compressor.torch.utils.utility import algos_mapping
from torch import nn

from ilwp_plugin.errors import ConfigError, MissingDependencyError, TensorError, TrainingError, nearest

from .inputs import read_examples
from .portable import portable
from .state import found_at, release

__all__ = [
    "ALGORITHM",
    "EXPORTED",
    "Composition",
    "Operator",
    "Taken",
    "compose",
    "composition_entry",
    "config_from_dict",
]

ALGORITHM = "ilwp"

Operator = tuple[str, str]
"""Name of a module and of its type, as INC's mappings have them."""

EXPORTED = ("static_quant", "pt2e_dynamic_quant")
"""Algorithms that take an exported graph instead of a module."""

_AT_ONCE = ("mixed_precision",)
"""Algorithms that convert whatever the mode."""

_WHOLE_MODEL = {"hqq": "turns the whole model into half precision, ilwp's layers among it"}
"""Algorithms that change what they do not take."""

_QUANTIZERS = "ilwp_composition_quantizers"
"""Of a prepared model: the quantizer of each algorithm that keeps one."""


@dataclass(frozen=True)
class Taken:
    """The layers that a configuration of ilwp changes.

    Attributes:
        asked: because it says so.
        left_over: because everything is compressed that nothing else takes; another algorithm may have them.
    """

    asked: frozenset[str]
    left_over: frozenset[str] = frozenset()


class Composition(BaseConfig):  # type: ignore[misc]
    """Configurations of several algorithms, each of which runs on its own layers. Made by `compose`.

    To INC it is one algorithm: what INC does with several in one mapping depends on their order, and loses some.

    Attributes:
        configs: ilwp's first.
    """

    name = "ilwp_composition"

    def __init__(self, configs: list[BaseConfig]) -> None:
        super().__init__(white_list=None)
        self.configs = configs

    @staticmethod
    def get_model_info(model: nn.Module) -> list[Operator]:
        """The model as one operator."""
        return [("", type(model).__name__)]

    def to_config_mapping(
        self, config_list: Any = None, model_info: list[Operator] | None = None
    ) -> OrderedDict[Operator, BaseConfig]:
        """All of it for the one operator."""
        return OrderedDict((operator, self) for operator in model_info or [])

    def to_dict(self) -> dict[str, Any]:
        """By the algorithms' names; `config_from_dict` restores it."""
        return {config.name: config.to_dict() for config in self.configs}

    def others(self) -> dict[str, Any]:
        """Those of the other algorithms, as a file keeps them; see `portable`."""
        return {config.name: portable(config) for config in self.configs if not _is_own(config.name)}

    def __add__(self, other: BaseConfig) -> BaseConfig:
        return compose(*self.configs, other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composition) and self.configs == other.configs

    def expand(self) -> list[BaseConfig]:
        """One for each combination of the sets of values of its parts."""
        return [Composition(list(chosen)) for chosen in itertools.product(*(part.expand() for part in self.configs))]

    @classmethod
    def register_supported_configs(cls) -> None:
        """None: it supports what its members support."""

    @classmethod
    def get_config_set_for_tuning(cls) -> None:
        """None."""


def compose(*configs: BaseConfig) -> BaseConfig:
    """One configuration that runs several algorithms, each on its own layers; for `quantize`, `prepare` and `autotune`.

    Args:
        configs: at most one of each algorithm. INC's own compositions and sums count as their parts.

    Raises:
        ConfigError: no configuration, two of one algorithm, or one that takes an exported model (use `stack`). That two
            algorithms take the same layer is found when the model is known.
    """
    parts: list[BaseConfig] = []
    for config in configs:
        if isinstance(config, (Composition, ComposableConfig)):
            parts += config.configs if isinstance(config, Composition) else config.config_list
        elif isinstance(config, BaseConfig):
            parts.append(config)
        else:
            raise ConfigError(f"expected configurations of INC, got {type(config).__name__}")
    names = [part.name for part in parts]
    if not parts:
        raise ConfigError("compose: no configuration given")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"compose: {name!r} is given twice; give single layers their own by set_local")
        if name in EXPORTED and len(parts) > 1:
            raise ConfigError(
                f"{name!r} runs on an exported model, the others before the export; use "
                "ilwp_integrations.neural_compressor.stack(model, [configurations in order], example_inputs)"
            )
        if name in _WHOLE_MODEL and len(parts) > 1:
            raise ConfigError(f"compose: {name!r} {_WHOLE_MODEL[name]}; it cannot run beside another algorithm")
    if len(parts) == 1:
        return parts[0]
    if len(own := [name for name in names if _is_own(name)]) > 1:
        raise ConfigError(
            f"compose: {own} are all of ilwp; IlwpConfig(recipes=[...]) runs several recipes, each on what is left"
        )
    return Composition(sorted(parts, key=lambda part: not _is_own(part.name)))


def _is_own(name: str) -> bool:
    return name == ALGORITHM or name.startswith(f"{ALGORITHM}_")


def config_from_dict(configs: Mapping[str, Mapping[str, Any]]) -> BaseConfig:
    """`compose` from dictionaries by the algorithms' names, as INC has them: `{"ilwp": {...}, "rtn": {...}}`.

    Raises:
        ConfigError: an unknown algorithm, or an invalid configuration.
    """
    known = config_registry.get_cls_configs()[FRAMEWORK_NAME]
    for name in configs:
        if name not in known:
            raise ConfigError(f"unknown algorithm {name!r}; {nearest(name, known)}")
    return compose(*(known[name].from_dict(values) for name, values in configs.items()))


def _taken(config: BaseConfig, model: nn.Module, example_inputs: Any) -> Taken:
    """The modules that an algorithm changes."""
    if _is_own(config.name):
        taken: Taken = config.taken(model, example_inputs)
        return taken
    mapping = config.to_config_mapping(model_info=config.get_model_info(model))
    return Taken(frozenset(name for (name, _), one in mapping.items() if getattr(one, "dtype", None) != "fp32"))


def _check(configs: list[BaseConfig], model: nn.Module, example_inputs: Any) -> frozenset[str]:
    """The layers of the algorithms other than ilwp. Raises where two have one layer, or one has none."""
    owners: dict[str, str] = {}
    others = set[str]()
    for config in configs:
        if getattr(config, "use_layer_wise", False) and importlib.util.find_spec("accelerate") is None:
            raise MissingDependencyError(
                f"{config.name} with use_layer_wise=True needs accelerate, which is not installed; set "
                "use_layer_wise=False, or pip install accelerate"
            )
        taken = _taken(config, model, example_inputs)
        if not taken.asked and not taken.left_over:
            raise ConfigError(f"{config.name!r} would run on no layer of the model")
        both = sorted(layer for layer in taken.asked if layer in owners)
        if both:
            raise ConfigError(
                f"{owners[both[0]]!r} and {config.name!r} both take layer {both[0]!r}"
                + (f" and {len(both) - 1} more" if len(both) > 1 else "")
                + "; leave it to one of them, by white_list, ignored_scopes or a local configuration"
            )
        owners.update(dict.fromkeys(taken.asked, config.name))
        others.update(() if _is_own(config.name) else taken.asked)
    if len(configs) > 1 and hasattr(model, "quantizer"):
        raise TrainingError(
            "the model has an attribute 'quantizer', which INC would take for its own and run instead; rename it"
        )
    return frozenset(others)


def composition_entry(
    model: nn.Module,
    configs_mapping: Mapping[Operator, Composition],
    mode: Mode = Mode.QUANTIZE,
    *args: Any,
    run_fn: Callable[..., Any] | None = None,
    run_args: Any = None,
    example_inputs: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Run each algorithm of a composition with a mapping of its own; `run_fn` runs once, on the prepared model."""
    (composition,) = configs_mapping.values()
    if mode is not Mode.CONVERT:
        examples = read_examples(model, example_inputs)
        others = _check(composition.configs, model, examples)
        quantizers: dict[str, Any] = {}
        for config in composition.configs:
            if config.name not in _AT_ONCE:
                own = _is_own(config.name)
                given = examples if own else example_inputs
                model = _run(config, model, Mode.PREPARE, given, without=others if own else ())
                _move(model, quantizers, config.name)
        setattr(model, _QUANTIZERS, quantizers)
    if mode is Mode.QUANTIZE and run_fn is not None:
        try:
            run_fn(model, *(run_args or ()))
        except BaseException:  # Ctrl-C among them
            release(model)
            delattr(model, _QUANTIZERS)
            raise
    if mode is not Mode.PREPARE:
        quantizers = getattr(model, _QUANTIZERS)
        for config in composition.configs:
            if config.name in quantizers:
                model.quantizer = quantizers[config.name]
            model = _run(config, model, Mode.CONVERT, example_inputs)
            _check_untouched(config.name, model)
        delattr(model, _QUANTIZERS)
    return model


def _check_untouched(algorithm: str, model: nn.Module) -> None:
    """Raises TrainingError where an algorithm has changed what ilwp has compressed."""
    found = found_at(model)
    if found is None or found.compressed is None:
        return
    try:
        found.compressed.check_compressed_in(model)
    except TensorError as error:
        raise TrainingError(f"{algorithm!r} has changed what ilwp has compressed ({error}); run it alone") from None


def _run(
    config: BaseConfig, model: nn.Module, mode: Mode, example_inputs: Any, without: Collection[str] = ()
) -> nn.Module:
    mapping = config.to_config_mapping(model_info=config.get_model_info(model))
    mapping = OrderedDict((operator, one) for operator, one in mapping.items() if operator[0] not in without)
    algorithm: Callable[..., nn.Module] = algos_mapping[config.name]
    return algorithm(model, mapping, mode=mode, example_inputs=example_inputs)


def _move(model: nn.Module, quantizers: dict[str, Any], name: str) -> None:
    """Keep an algorithm's quantizer under its own name: INC would give it to the next algorithm, too."""
    if hasattr(model, "quantizer"):
        quantizers[name] = model.quantizer
        del model.quantizer
