"""What is hooked into the model, and what is read from its hooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from nncf.torch.function_hook.hook_storage import HookStorage, decode_hook_name
from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph
from nncf.torch.function_hook.pruning.magnitude.modules import UnstructuredPruningMask
from nncf.torch.function_hook.pruning.rb.modules import RBPruningMask
from nncf.torch.function_hook.wrapper import get_hook_storage, is_wrapped
from nncf.torch.layer_utils import StatefulModuleInterface
from nncf.torch.model_graph_manager import get_const_node
from nncf.torch.quantization.layers import BaseQuantizer
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.training import ClosedLoop

__all__ = [
    "FrozenRBPruningMask",
    "MaskedWeight",
    "ResidualQuantizer",
    "ilwp_residual_quantize",
    "mask_hooks",
    "parameter_hooks",
    "residual_quantizers",
    "weight_quantizers",
]

_MASKS = (UnstructuredPruningMask, RBPruningMask)


def ilwp_residual_quantize(weight: Tensor, hook: ResidualQuantizer) -> Tensor:
    """One operation for NNCF's graph, whatever goes on inside."""
    if has_torch_function_unary(weight):
        return handle_torch_function(ilwp_residual_quantize, (weight,), weight, hook)
    return hook.loop(hook.number, weight)


class ResidualQuantizer(nn.Module, StatefulModuleInterface):  # type: ignore[misc]
    """Function hook on a parameter: it becomes what the file will restore.

    Args:
        config: of the chain.
        layers: of the chain, in order.
        number: of the layer in it.
        loop: of the chain; None for a hook that is restored from NNCF's config.
    """

    _restored: ClassVar[dict[str, tuple[ClosedLoop, set[int]]]] = {}
    """Chains whose hooks NNCF is restoring one by one, in any order; they are to share a loop."""

    def __init__(self, config: IlwpConfig, layers: tuple[str, ...], number: int, loop: ClosedLoop) -> None:
        super().__init__()
        self.config, self.layers, self.number, self.loop = config, layers, number, loop

    def forward(self, weight: Tensor) -> Tensor:
        return ilwp_residual_quantize(weight, self)

    def get_config(self) -> dict[str, Any]:
        """For `nncf.torch.get_config`."""
        return {"config": self.config.to_dict(), "layers": list(self.layers), "number": self.number}

    @classmethod
    def from_config(cls, state: dict[str, Any]) -> ResidualQuantizer:
        """For `nncf.torch.load_from_config`."""
        config, layers, number = IlwpConfig.from_dict(state["config"]), tuple(state["layers"]), state["number"]
        key = json.dumps([config.to_dict(), layers])
        loop, numbers = cls._restored.pop(key, (None, set()))
        if loop is None or number in numbers:
            loop, numbers = ClosedLoop(config, layers, [_Unknown(layer) for layer in layers]), set()
        numbers.add(number)
        if len(numbers) < len(layers):
            cls._restored[key] = (loop, numbers)
        return cls(config, layers, number, loop)


class FrozenRBPruningMask(RBPruningMask):  # type: ignore[misc]
    """A mask of NNCF's regularization-based pruning that learns no more and is not drawn at random."""

    def train(self, mode: bool = True) -> FrozenRBPruningMask:
        super().train(False)
        self.mask.requires_grad_(False)
        return self


class _Unknown:
    """The source of a layer of a restored hook, until the whole model is there."""

    pruned = False

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def weight(self) -> Tensor:
        raise TrainingError(
            f"layer {self.layer!r} has not run yet in this pass, and its hook has been restored without its model; "
            "call ilwp_integrations.nncf.controller_of(model, example_input)"
        )


class MaskedWeight:
    """The weight of a layer as it enters the residual quantizer: with the masks before it applied.

    Args:
        model: the wrapped model.
        layer: name.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model, self.layer = model, layer

    @property
    def masks(self) -> list[nn.Module]:
        """The masks of NNCF on the weight."""
        return [hook for _, hook in parameter_hooks(self.model, f"{self.layer}.weight") if isinstance(hook, _MASKS)]

    @property
    def pruned(self) -> bool:
        """Whether there are any."""
        return bool(self.masks)

    def weight(self) -> Tensor:
        """A `WeightSource`; the gradient goes to the weight, not to masks that are learned."""
        weight: Tensor = self.model.get_parameter(f"{self.layer}.weight")
        masks = self.masks
        if not masks:
            return weight
        with torch.no_grad():
            kept = weight.detach()
            for mask in masks:
                training = mask.training
                mask.training = False  # in training the masks of rb pruning are drawn at random
                kept = mask(kept)
                mask.training = training
        return weight * (kept != 0)


def parameter_hooks(model: nn.Module, parameter: str) -> list[tuple[str, nn.Module]]:
    """Names and hooks on a parameter, in the order in which they run."""
    if not is_wrapped(model):
        return []
    storage = get_hook_storage(model)
    key = HookStorage._generate_key(parameter, 0)
    return (
        [(f"post_hooks.{key}.{number}", hook) for number, hook in storage.post_hooks[key].items()]
        if (key in storage.post_hooks)
        else []
    )


def residual_quantizers(model: nn.Module) -> dict[str, ResidualQuantizer]:
    """By their names in the hook storage; none in a model that is not wrapped."""
    hooks = get_hook_storage(model).named_hooks() if is_wrapped(model) else []
    return {name: hook for name, hook in hooks if isinstance(hook, ResidualQuantizer)}


def mask_hooks(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Hook name, parameter name and hook of every mask."""
    for name, hook in get_hook_storage(model).named_hooks():
        if isinstance(hook, _MASKS):
            yield name, decode_hook_name(name)[1], hook


def weight_quantizers(model: nn.Module, example_input: Any) -> dict[str, str]:
    """Names of the hooks by which NNCF quantizes weights, by the name of the parameter."""
    graph = build_nncf_graph(model, example_input)
    found: dict[str, str] = {}
    for name, hook in get_hook_storage(model).named_hooks():
        kind, operation, port = decode_hook_name(name)
        if not isinstance(hook, BaseQuantizer) or kind != "pre_hooks":
            continue
        constant = get_const_node(graph.get_node_by_name(operation), port, graph)
        if constant is not None:
            found[constant.layer_attributes.name] = name
    return found
