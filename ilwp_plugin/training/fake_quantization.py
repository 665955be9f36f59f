"""Quantization-aware training: every layer computes with what the file will restore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.method.provenance import Provenance
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.torch_network import network_of
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.recipes.base import WeightSource
from ilwp_plugin.training.parts import Parts

__all__ = ["FakeQuantization", "FakeQuantizer"]


class FakeQuantization(nn.Module):
    """Base of parametrizations that quantize straight through: the loss looks behind them, at the weights that train.

    There it pulls every weight on towards its reference. Of quantized weights it would rest as soon as their difference
    is the code 0; that costs both bytes and accuracy (docs/alignment.md).
    """

    how_to_remove = (
        "a FakeQuantizer is on the model: quantizer.remove() takes it off, and quantizer.compressed() is then the file "
        "of what the model has computed with"
    )


class _RawWeight:
    """The weight behind a parametrization; weights that are 0 at the start, as pruning leaves them, stay 0."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        zeros = module.get_parameter("weight").detach() == 0
        self._zeros = zeros if bool(zeros.any()) else None

    @property
    def pruned(self) -> bool:
        """See `WeightSource`."""
        return self._zeros is not None

    def masked(self, weight: Tensor) -> Tensor:
        """With no gradient to what is pruned."""
        return weight if self._zeros is None else weight.masked_fill(self._zeros.to(weight.device), 0.0)

    def weight(self) -> Tensor:
        """See `WeightSource`."""
        module = self._module
        if parametrize.is_parametrized(module, "weight"):
            original: Tensor = module.parametrizations.weight.original  # type: ignore[union-attr,assignment]
            return self.masked(original)
        return self.masked(module.get_parameter("weight"))


class _Restored(FakeQuantization):
    """Parametrization of one layer's weight: forward what the file restores, backward as the recipe has it."""

    def __init__(self, parts: Parts, key: str, source: _RawWeight) -> None:
        super().__init__()
        self._parts, self._key, self._source = [parts], key, source  # a list: a copy of the module keeps the recipes

    def forward(self, weight: Tensor) -> Tensor:
        return self._parts[0].weight(self._key, self._source.masked(weight))


class FakeQuantizer:
    """Every recipe of a configuration acts while a model trains.

    Each layer computes with the weights that the file would restore. Weights that are exactly 0 at the start, as
    pruning leaves them, stay 0. `compressed` is the file of what the model computes with; `remove` gives the raw
    weights back.

        quantizer = FakeQuantizer(model, config)
        ...train; add quantizer.parts.loss() to the loss...
        quantizer.remove()
        quantizer.compressed(model).save("model.ilwp")

    Args:
        model: the model; its layers get a parametrization of their weight.
        config: IlwpConfig() if None.
        example_inputs: see `compress`.
        references: index maps or origins by layer name, see `compress`.
        calibration: inputs by which steps are chosen, see `pipeline.calibration_inputs.read_inputs`.
        loss_alone: whether a configuration will do that quantizes nothing, and only adds its losses.

    Attributes:
        parts: of the recipes.
        names: of the layers that compute with restored weights.

    Raises:
        ChainError: the model has no chain, and nothing else is to be quantized.
        ConfigError: the configuration quantizes nothing.
        TrainingError: the weight of a chained layer is parametrized already, or another module holds it too.
    """

    def __init__(
        self,
        model: nn.Module,
        config: IlwpConfig | Mapping[str, Any] | None = None,
        *,
        example_inputs: Any = None,
        references: Mapping[str, Tensor] | Provenance | None = None,
        calibration: CalibrationInputs | None = None,
        loss_alone: bool = False,
    ) -> None:
        self._model = unwrap(model)
        network = network_of(self._model)
        sources = self._sources = _sources(self._model, network)
        self.parts = Parts(
            IlwpConfig.of(config),
            network,
            sources,
            example_inputs=example_inputs,
            references=references,
            calibration=calibration,
        )
        if not self.parts.keys and not loss_alone:
            raise ConfigError(
                "the configuration quantizes no layer that trains; set `bits` to 2..8, or a `weight_step`; the "
                "inter-layer loss alone is training.InterLayerLoss"
            )
        self.names = [network.layer_of(key) for key in self.parts.keys]
        self._modules = {name: self._model.get_submodule(name) for name in self.names}
        for key, module in zip(self.parts.keys, self._modules.values(), strict=True):
            source = sources[key]
            assert isinstance(source, _RawWeight)
            parametrize.register_parametrization(module, "weight", _Restored(self.parts, key, source), unsafe=True)

    @property
    def enabled(self) -> bool:
        """Whether layers compute with restored weights; False trains on as if there were no quantizer."""
        return self.parts.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.parts.enabled = value

    def raw_weights(self) -> dict[str, Tensor]:
        """By key, the parameters behind the restored weights."""
        return {
            f"{name}.weight": module.parametrizations.weight.original  # type: ignore[union-attr,misc]
            for name, module in self._modules.items()
        }

    def remove(self, bake: bool = False) -> None:
        """Take the parametrizations off.

        Args:
            bake: leave the restored weights in the model, not the raw ones.
        """
        baked = self.parts.reconstructed() if bake else {}
        for name, module in self._modules.items():
            raw = self._sources[f"{name}.weight"].weight().detach().clone()
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            if "bias" in module._parameters:  # behind the weight again: state dicts have an order
                module._parameters["bias"] = module._parameters.pop("bias")
            with torch.no_grad():
                module.get_parameter("weight").copy_(baked.get(f"{name}.weight", raw))
        self._modules = {}

    def compressed(self, model: nn.Module | None = None, **options: Any) -> CompressedModel:
        """The file that restores what the model computes with; see `Parts.compressed`.

        Args:
            model: the model without its parametrizations; None for the one that was given, after `remove`.
            options: `quantized`, `calibration`, `metadata`.

        Raises:
            TrainingError: the quantizer is still on.
        """
        if self._modules:
            raise TrainingError("the quantizer is still on; remove() it first")
        return self.parts.compressed(self._model if model is None else model, **options)


def _sources(model: nn.Module, network: Network) -> dict[str, WeightSource]:
    """Of all layers whose weight is a parameter of theirs alone."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(name)
    sources: dict[str, WeightSource] = {}
    for name, layer in network.layers.items():
        if not layer.hooked or layer.kind == "MultiheadAttention":
            continue
        module = model.get_submodule(name)
        weight = module._parameters.get("weight")
        if weight is not None and len(holders[id(weight)]) == 1:
            sources[layer.weight] = _RawWeight(module)
    return sources
