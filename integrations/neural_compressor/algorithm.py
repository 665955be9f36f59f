"""The algorithm as INC calls it: prepare, train, convert."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ilwp_plugin.selection import chains_of, select_layers
from neural_compressor.common.base_config import ComposableConfig, register_config
from neural_compressor.common.utils import Mode
from neural_compressor.torch.algorithms.base_algorithm import Quantizer
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from neural_compressor.torch.utils.utility import register_algo
from torch import nn

from ilwp_plugin import CompressedModel, compress
from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.training import FakeQuantizer, InterLayerLoss, TrainingRun

from .config import ALGORITHM, LOCAL_FIELDS, IlwpConfig, Operator

__all__ = [
    "Attached",
    "IlwpQuantizer",
    "attached",
    "calibration_of",
    "changed_fields",
    "core_config",
    "register",
    "regularizer",
]

_PRIORITY = 50
"""Of autotune over all registered algorithms; INC's own are between 10 and 90."""

_ATTRIBUTE = "ilwp"
"""Of a model: its `Attached`. INC's own attribute `quantizer` is taken for whichever algorithm runs next."""


@dataclass
class Attached:
    """What ilwp left at a model.

    Attributes:
        config: of all layers; `overrides` holds the local configurations.
        example_inputs: of the call that prepared the model, or None.
        quantizer: while the model trains; None without `bits`.
        compressed: after the conversion; None before, and without `bits`.
    """

    config: CoreConfig
    example_inputs: Any = None
    quantizer: FakeQuantizer | None = None
    compressed: CompressedModel | None = None

    @property
    def quantizes(self) -> bool:
        """Whether the conversion changes anything; a configuration may ask for the loss alone."""
        return self.config.bits is not None or self.config.weight_step is not None


def attached(model: nn.Module) -> Attached:
    """What ilwp left at a model. Raises TrainingError where it left nothing."""
    found = getattr(unwrap(model), _ATTRIBUTE, None)
    if not isinstance(found, Attached):
        raise TrainingError(
            f"this {type(model).__name__} has not been through prepare(model, IlwpConfig(...)) or "
            "quantize(model, IlwpConfig(...)); where those ran with inplace=False, use what they returned"
        )
    return found


def regularizer(model: nn.Module, run: TrainingRun | None = None) -> InterLayerLoss:
    """The weighted inter-layer loss of a prepared model, to add to the loss in the training loop.

    Args:
        model: as `prepare` returned it, or as `run_fn` gets it.
        run: the training to come; needed where `loss_weight` is "auto".
    """
    found = attached(model)
    # Layers that are not quantized train with the loss all the same; `overrides` do not matter to it.
    return InterLayerLoss(
        model, found.config.replace(overrides={}, bits=None), run=run, example_inputs=found.example_inputs
    )


def core_config(mapping: Mapping[Operator, IlwpConfig], model: nn.Module, example_inputs: Any = None) -> CoreConfig:
    """INC's mapping of operators to configurations as one configuration of the core.

    What is mapped to no ilwp configuration, or to one without bits while others have some, is ignored.

    Raises:
        ConfigError: the mapping holds no ilwp configuration, a set of values, or a local configuration of layers
            that are in no chain.
    """
    own = {name: config for (name, _), config in mapping.items() if config.name == ALGORITHM}
    if not own:
        raise ConfigError("no convolution has an ilwp configuration; the white list is empty, or the model has none")
    quantized = {name: config for name, config in own.items() if config.bits is not None}
    taken = quantized or own
    base = next(iter(taken.values())).core()
    overrides: dict[str, dict[str, Any]] = {}
    for name, one in taken.items():
        one.core()  # no sets of values
        changes = {f: getattr(one, f) for f in LOCAL_FIELDS if getattr(one, f) != getattr(base, f)}
        if changes:
            overrides[name] = changes
    known = [name for name, _ in next(iter(own.values())).get_model_info(model)]
    left_out = [name for name in known if name not in taken]
    config = base.replace(ignored_scopes=[*base.ignored_scopes, *left_out])
    # A mapping names every convolution, chained or not; the core wants overrides of chained layers only.
    if not overrides and not any(one.local_key for one in taken.values()):
        return config
    chained = {layer for chain in chains_of(model, config, example_inputs=example_inputs) for layer in chain.layers}
    keys = {key for own_config in taken.values() if (key := own_config.local_key)}
    for key in sorted(keys):
        if not any(name in chained for name, own_config in taken.items() if own_config.local_key == key):
            raise ConfigError(f"the configuration of {key!r} names no layer of a chain; chained are {sorted(chained)}")
    return config.replace(overrides={name: value for name, value in overrides.items() if name in chained})


def changed_fields(config: CoreConfig) -> dict[str, Any]:
    """The fields of a configuration that are not as by default, for the metadata of a file."""
    default = CoreConfig().to_dict()
    return {name: value for name, value in config.to_dict().items() if value != default[name]}


def calibration_of(config: CoreConfig, example_inputs: Any) -> list[Any] | None:
    """The example inputs as one batch to calibrate with, where a configuration has something to calibrate."""
    return None if config.weight_step is None or example_inputs is None else [example_inputs]


class IlwpQuantizer(Quantizer):  # type: ignore[misc]
    """ilwp under INC's interface of algorithms.

    Args:
        config: the core's.
        example_inputs: for the execution order, where a symbolic trace does not find it; and for calibration, where the
            configuration has a `weight_step`: then better a few hundred examples than one.
    """

    def __init__(self, config: CoreConfig, example_inputs: Any = None) -> None:
        super().__init__({ALGORITHM: config})
        self.config, self.example_inputs = config, example_inputs

    def prepare(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """Let the model compute with reconstructed weights; the loss comes from `regularizer`."""
        earlier = getattr(unwrap(model), _ATTRIBUTE, None)
        if isinstance(earlier, Attached) and earlier.quantizer is not None:
            raise TrainingError("the model is prepared already; convert it first")
        found = Attached(self.config, self.example_inputs)
        select_layers(model, self.config.replace(bits=self.config.bits or 8), {}, self.example_inputs)  # or raises
        if self.config.bits is not None:
            found.quantizer = FakeQuantizer(model, self.config, example_inputs=self.example_inputs)
        setattr(unwrap(model), _ATTRIBUTE, found)
        return model

    def convert(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """Bake the reconstructed weights into the model."""
        found = attached(model)
        if not found.quantizes:
            return model
        if found.compressed is not None:
            raise TrainingError("the model is converted already")
        if found.quantizer is not None:
            found.quantizer.remove()
            found.quantizer = None
        calibration = calibration_of(found.config, found.example_inputs)
        found.compressed = compress(model, found.config, example_inputs=found.example_inputs, calibration=calibration)
        found.compressed.apply_to(model)
        return model


def _entry(
    model: nn.Module,
    configs_mapping: Mapping[Operator, IlwpConfig],
    mode: Mode = Mode.QUANTIZE,
    *args: Any,
    run_fn: Callable[..., Any] | None = None,
    run_args: Any = None,
    example_inputs: Any = None,
    **kwargs: Any,
) -> nn.Module:
    from .saving import make_savable

    if mode is Mode.CONVERT and getattr(unwrap(model), _ATTRIBUTE, None) is not None:
        quantizer = IlwpQuantizer(attached(model).config)
    else:
        quantizer = IlwpQuantizer(core_config(configs_mapping, model, example_inputs), example_inputs)
        if mode is Mode.CONVERT:  # INC converts what is not prepared, too
            quantizer.prepare(model)
    with torch.enable_grad():  # run_fn may train
        model = quantizer.execute(model, mode, run_fn=run_fn, run_args=run_args)
    if mode is not Mode.PREPARE:
        make_savable(model, configs_mapping)
    return model


def _guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    def from_dict(cls: type, config_dict: Mapping[str, Any], config_registry: Mapping[str, Any]) -> Any:
        if ALGORITHM in config_dict and len(config_dict) > 1:
            raise ConfigError(
                f"INC keeps only the first of the algorithms {json.dumps(list(config_dict))} and drops the others "
                "silently; use ilwp_integrations.neural_compressor.config_from_dict(...), which keeps all"
            )
        return original(config_dict, config_registry)

    return from_dict


_registered = False


def register() -> None:
    """Make `"ilwp"` an algorithm of INC. Calling it again changes nothing.

    A dict of several algorithms with ilwp among them is refused from then on, where INC itself would silently keep only
    the first; everything else in INC stays as it is.
    """
    global _registered
    if _registered:
        return
    from .composition import Composition, composition_entry

    register_config(framework_name=FRAMEWORK_NAME, algo_name=ALGORITHM, priority=_PRIORITY)(IlwpConfig)
    register_algo(ALGORITHM)(_entry)
    register_algo(Composition.name)(composition_entry)
    IlwpConfig.register_supported_configs()
    ComposableConfig.from_dict = classmethod(_guarded(ComposableConfig.from_dict))
    _registered = True
