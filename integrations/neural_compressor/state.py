"""What ilwp leaves at a model that INC prepares and converts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ilwp_plugin import CompressedModel
from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.models.torch_network import network_of
from ilwp_plugin.training import FakeQuantizer

from .inputs import Examples, Recorder

__all__ = ["Attached", "attach", "attached", "found_at", "operators_of", "qconfig", "release"]

_ATTRIBUTE = "ilwp"
"""Of a model: its `Attached`. INC's own attribute `quantizer` is taken for whichever algorithm runs next."""


@dataclass
class Attached:
    """What ilwp left at a model.

    Attributes:
        config: of all layers; `overrides` holds the local configurations.
        operators: name and kind of every layer and norm.
        examples: of the call that prepared the model.
        quantizer: while the model trains.
        recorder: while it is prepared: of what it is called with.
        prepared: digest of the model's tensors when it was prepared.
        compressed: after the conversion; None before, and where nothing is quantized.
    """

    config: CoreConfig
    operators: list[tuple[str, str]]
    examples: Examples = field(default_factory=Examples)
    quantizer: FakeQuantizer | None = None
    recorder: Recorder | None = None
    prepared: str = ""
    compressed: CompressedModel | None = None

    @property
    def quantizes(self) -> bool:
        """Whether the conversion changes anything; a configuration may ask for the loss alone."""
        return any(recipe.quantizes() for recipe in self.config.recipe_list())


def attach(model: nn.Module, found: Attached) -> None:
    """Leave something at a model."""
    setattr(unwrap(model), _ATTRIBUTE, found)


def release(model: nn.Module) -> None:
    """Make a prepared model what it was, with the weights that it has now."""
    found = found_at(model)
    if found is None or found.quantizer is None or found.recorder is None:
        return
    found.quantizer.remove()
    found.recorder.stop(model)
    delattr(unwrap(model), _ATTRIBUTE)


def found_at(model: nn.Module) -> Attached | None:
    """What ilwp left at a model, if it did."""
    found = getattr(unwrap(model), _ATTRIBUTE, None)
    return found if isinstance(found, Attached) else None


def attached(model: nn.Module) -> Attached:
    """What ilwp left at a model. Raises TrainingError where it left nothing."""
    found = found_at(model)
    if found is None:
        raise TrainingError(
            f"this {type(model).__name__} has not been through prepare(model, IlwpConfig(...)) or "
            "quantize(model, IlwpConfig(...)); where those ran with inplace=False, use what they returned"
        )
    return found


def operators_of(model: nn.Module) -> list[tuple[str, str]]:
    """Name and kind of every layer and batch norm of a model, as it was before ilwp prepared it.

    Raises:
        ConfigError: it has none.
    """
    found = found_at(model)
    if found is not None:
        return found.operators
    network = network_of(model)
    norms = [(name, type(unwrap(model).get_submodule(name)).__name__) for name in network.norms]
    operators = [*((name, layer.kind) for name, layer in network.layers.items()), *norms]
    if not operators:
        raise ConfigError(f"this {type(model).__name__} holds no weight of two dimensions or more: nothing to compress")
    return operators


def qconfig(model: nn.Module) -> Mapping[Any, Any]:
    """INC's mapping of a converted model's operators to configurations."""
    own: Any = unwrap(model)
    mapping: Mapping[Any, Any] = own.qconfig
    return mapping
