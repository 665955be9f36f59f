"""Several algorithms on one model, none of them dropped."""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from ilwp_plugin.selection import select_layers
from neural_compressor.common.base_config import BaseConfig, ComposableConfig, config_registry
from neural_compressor.common.utils import Mode
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from neural_compressor.torch.utils.utility import algos_mapping
from torch import nn

from ilwp_plugin.errors import ConfigError, MissingDependencyError, TrainingError, nearest

from .algorithm import core_config
from .config import ALGORITHM, Operator

__all__ = ["EXPORTED", "Composition", "compose", "composition_entry", "config_from_dict"]

EXPORTED = ("static_quant", "pt2e_dynamic_quant")
"""Algorithms that take an exported graph instead of a module."""

_AT_ONCE = ("mixed_precision",)
"""Algorithms that convert whatever the mode."""


_QUANTIZERS = "ilwp_composition_quantizers"
"""Of a prepared model: the quantizer of each algorithm that keeps one."""


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

    def __add__(self, other: BaseConfig) -> BaseConfig:
        return compose(*self.configs, other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composition) and self.configs == other.configs

    def expand(self) -> list[BaseConfig]:
        """As it is; sets of values inside are refused when it runs."""
        return [self]

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
    if len(parts) == 1:
        return parts[0]
    return Composition(sorted(parts, key=lambda part: part.name != ALGORITHM))


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


def _layers(config: BaseConfig, model: nn.Module, example_inputs: Any) -> set[str]:
    """The modules that an algorithm changes."""
    mapping = config.to_config_mapping(model_info=config.get_model_info(model))
    if config.name == ALGORITHM:
        own = core_config(mapping, model, example_inputs)
        taken = select_layers(model, own, {}, example_inputs)
        return {layer for chain in taken.chains for layer in chain.layers} | set(taken.grid)
    return {name for (name, _), one in mapping.items() if getattr(one, "dtype", None) != "fp32"}


def _check(configs: list[BaseConfig], model: nn.Module, example_inputs: Any) -> None:
    owners: dict[str, str] = {}
    for config in configs:
        if getattr(config, "use_layer_wise", False) and importlib.util.find_spec("accelerate") is None:
            raise MissingDependencyError(
                f"{config.name} with use_layer_wise=True needs accelerate, which is not installed; set "
                "use_layer_wise=False, or pip install accelerate"
            )
        layers = _layers(config, model, example_inputs)
        if not layers:
            raise ConfigError(f"{config.name!r} would run on no layer of the model")
        both = sorted(layer for layer in layers if layer in owners)
        if both:
            raise ConfigError(
                f"{owners[both[0]]!r} and {config.name!r} both take layer {both[0]!r}"
                + (f" and {len(both) - 1} more" if len(both) > 1 else "")
                + "; leave it to one of them, by white_list, ignored_scopes or a local configuration"
            )
        owners.update(dict.fromkeys(layers, config.name))
    if len(configs) > 1 and hasattr(model, "quantizer"):
        raise TrainingError(
            "the model has an attribute 'quantizer', which INC would take for its own and run instead; rename it"
        )


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
    from .saving import make_savable

    (composition,) = configs_mapping.values()
    if mode is not Mode.CONVERT:
        _check(composition.configs, model, example_inputs)
        quantizers: dict[str, Any] = {}
        for config in composition.configs:
            if config.name not in _AT_ONCE:
                model = _run(config, model, Mode.PREPARE, example_inputs)
                _move(model, quantizers, config.name)
        setattr(model, _QUANTIZERS, quantizers)
    if mode is Mode.QUANTIZE and run_fn is not None:
        run_fn(model, *(run_args or ()))
    if mode is not Mode.PREPARE:
        quantizers = getattr(model, _QUANTIZERS)
        for config in composition.configs:
            if config.name in quantizers:
                model.quantizer = quantizers[config.name]
            model = _run(config, model, Mode.CONVERT, example_inputs)
        delattr(model, _QUANTIZERS)
        make_savable(model, configs_mapping)
    return model


def _run(config: BaseConfig, model: nn.Module, mode: Mode, example_inputs: Any) -> nn.Module:
    mapping = config.to_config_mapping(model_info=config.get_model_info(model))
    algorithm: Callable[..., nn.Module] = algos_mapping[config.name]
    return algorithm(model, mapping, mode=mode, example_inputs=example_inputs)


def _move(model: nn.Module, quantizers: dict[str, Any], name: str) -> None:
    """Keep an algorithm's quantizer under its own name: INC would give it to the next algorithm, too."""
    if hasattr(model, "quantizer"):
        quantizers[name] = model.quantizer
        del model.quantizer
