"""What INC is told: ilwp's algorithms and their configurations."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from neural_compressor.common.base_config import ComposableConfig, register_config
from neural_compressor.common.utils import Mode
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from neural_compressor.torch.utils.utility import register_algo
from torch import nn

from ilwp_plugin.errors import ConfigError

from .algorithm import entry
from .composition import ALGORITHM, Composition, composition_entry
from .config import IlwpConfig, recipe_config
from .saving import make_savable

__all__ = ["config_of", "register"]

_PRIORITY = 50
"""Of autotune over all registered algorithms; INC's own are between 10 and 90."""


def _savable(algorithm: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """An algorithm whose models INC's `save` writes as an `.ilwp` file."""

    def run(model: nn.Module, configs_mapping: Mapping[Any, Any], mode: Mode = Mode.QUANTIZE, **options: Any) -> Any:
        model = algorithm(model, configs_mapping, mode=mode, **options)
        if mode is not Mode.PREPARE:
            make_savable(model, configs_mapping)
        return model

    return run


def _guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    def from_dict(cls: type, config_dict: Mapping[str, Any], config_registry: Mapping[str, Any]) -> Any:
        if ALGORITHM in config_dict and len(config_dict) > 1:
            raise ConfigError(
                f"INC keeps only the first of the algorithms {json.dumps(list(config_dict))} and drops the others "
                "silently; use ilwp_integrations.neural_compressor.config_from_dict(...), which keeps all"
            )
        return original(config_dict, config_registry)

    return from_dict


@functools.cache
def config_of(recipe: str) -> type[IlwpConfig]:
    """The configuration of one recipe, as an algorithm of INC called `ilwp_<recipe>`; registered by this call.

        quantize(model, config_of("grid")(weight_step=0.02))

    Args:
        recipe: by its name in `ilwp_plugin.recipes.RECIPES`. Of `ilwp` it is IlwpConfig, whose fields are those of
            three recipes.

    Raises:
        ConfigError: there is no such recipe.
    """
    config = recipe_config(recipe)
    register_config(framework_name=FRAMEWORK_NAME, algo_name=config.name, priority=_PRIORITY)(config)
    register_algo(config.name)(_savable(entry))
    config.register_supported_configs()
    return config


@functools.cache
def register() -> None:
    """Make `"ilwp"` an algorithm of INC. Calling it again changes nothing.

    A dict of several algorithms with ilwp among them is refused from then on, where INC itself would silently keep only
    the first; everything else in INC stays as it is.
    """
    config_of(ALGORITHM)
    register_algo(Composition.name)(_savable(composition_entry))
    ComposableConfig.from_dict = classmethod(_guarded(ComposableConfig.from_dict))
