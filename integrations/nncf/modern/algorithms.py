"""The sections of the config as parts of a controller: each has a loss, reacts to epochs, and has a state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import nncf
import torch
from nncf.common.quantization.structs import QuantizationScheme
from nncf.parameters import PruneMode
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    OverflowFix,
    QuantizationParameters,
)
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from nncf.torch.function_hook.hook_storage import decode_hook_name
from nncf.torch.function_hook.pruning.magnitude.algo import update_pruning_ratio
from nncf.torch.function_hook.pruning.rb.losses import RBLoss
from nncf.torch.function_hook.pruning.rb.modules import RBPruningMask
from nncf.torch.function_hook.wrapper import get_hook_storage
from torch import Tensor, nn

from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.training import Session

from ..sparsity_schedules import SparsitySchedule
from .config import NNCFConfig, init_inputs
from .hooks import FrozenRBPruningMask, mask_hooks, weight_quantizers
from .operations import Operations

__all__ = [
    "CompressionStage",
    "IlwpPart",
    "Part",
    "QuantizationPart",
    "SparsityPart",
    "SPARSITY_PARTS",
    "adapt_batch_norms",
    "check_scopes",
    "patterns_of",
    "scopes_of",
    "prune_masks",
    "quantize",
]


class CompressionStage(IntEnum):
    """How far a model is compressed."""

    UNCOMPRESSED = 0
    PARTIALLY_COMPRESSED = 1
    FULLY_COMPRESSED = 2


class Part:
    """One algorithm in a controller."""

    name = ""

    def loss(self) -> Tensor | float:
        """What it adds to the loss of the training."""
        return 0.0

    def set_epoch(self, epoch: int) -> None:
        """An epoch begins, counted from 0."""

    def begin_step(self) -> None:
        """A step begins."""

    def stage(self) -> CompressionStage:
        """How far it compresses."""
        return CompressionStage.FULLY_COMPRESSED

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON has it."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""

    def statistics(self) -> dict[str, Any]:
        """Numbers for the user."""
        return {}


class QuantizationPart(Part):
    """int8: its quantizers are in the model from the beginning."""

    name = "quantization"


class SparsityPart(Part):
    """Masks on weights.

    Args:
        model: with the masks in it.
        section: of the config.
    """

    def __init__(self, model: nn.Module, section: Mapping[str, Any]) -> None:
        self.model, self.schedule = model, SparsitySchedule(section)
        self.name, self.epoch = section["algorithm"], -1
        self.held: float | None = None

    def follow(self, model: nn.Module) -> None:
        """NNCF has made a copy of the model."""
        self.model = model

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def stage(self) -> CompressionStage:
        level = self.level()
        if level >= self.schedule.target:
            return CompressionStage.FULLY_COMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED if level > 0 else CompressionStage.UNCOMPRESSED

    def level(self) -> float:
        """What is asked for now: that of the schedule, unless it is held."""
        return self.schedule.level(self.epoch) if self.held is None else self.held

    def hold(self, level: float) -> None:
        """From now on this level, whatever the schedule says."""
        self.held = level

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "held": self.held}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.held = state["epoch"], state["held"]

    @torch.no_grad()
    def statistics(self) -> dict[str, Any]:
        layers: dict[str, float] = {}
        zeros = total = 0
        for _, parameter, mask in mask_hooks(self.model):
            keep: Any = mask.mask > 0 if isinstance(mask, RBPruningMask) else mask.binary_mask
            layers[parameter] = 1 - float(keep.double().mean())
            zeros, total = zeros + int((~keep.bool()).sum()), total + keep.numel()
        return {
            "sparsity": zeros / max(1, total),
            "target_sparsity": self.level(),
            "sparsity_of_layers": layers,
        }


class ConstSparsityPart(SparsityPart):
    """Masks that keep the zeros which the weights had."""

    def stage(self) -> CompressionStage:
        return CompressionStage.FULLY_COMPRESSED

    def statistics(self) -> dict[str, Any]:
        return {name: value for name, value in super().statistics().items() if name != "target_sparsity"}


class MagnitudeSparsityPart(SparsityPart):
    """Masks by magnitude, over all layers together."""

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if epoch < self.schedule.freeze_epoch and self.held is None:
            self._apply()

    def hold(self, level: float) -> None:
        super().hold(level)
        self._apply()

    def _apply(self) -> None:
        update_pruning_ratio(self.model, PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, self.level())


class RBSparsityPart(SparsityPart):
    """Masks that are learned, and a loss that steers how many weights they leave."""

    def __init__(self, model: nn.Module, section: Mapping[str, Any]) -> None:
        super().__init__(model, section)
        self._loss = RBLoss(model, self.schedule.level(-1))
        self._lr_multiplier = section.get("compression_lr_multiplier")
        self._multiply_gradients()
        self._freeze_if_due()

    def _multiply_gradients(self) -> None:
        if self._lr_multiplier is None:
            return
        for _, _, mask in mask_hooks(self.model):
            parameter: Any = mask.mask
            parameter.register_hook(lambda gradient: gradient * self._lr_multiplier)

    def _freeze_if_due(self) -> None:
        if self.epoch >= self.schedule.freeze_epoch:
            for _, _, mask in mask_hooks(self.model):
                mask.__class__ = FrozenRBPruningMask
                mask.train(False)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.schedule.follow(self.statistics()["sparsity"])
        self._apply()

    def hold(self, level: float) -> None:
        super().hold(level)
        self._apply()

    def _apply(self) -> None:
        self._loss.target_ratio = self.level()
        self._freeze_if_due()

    def follow(self, model: nn.Module) -> None:
        super().follow(model)
        self._loss.model = model
        self._multiply_gradients()  # copies of parameters have no hooks

    def loss(self) -> Tensor | float:
        return 0.0 if self.epoch >= self.schedule.freeze_epoch else self._loss()

    def state(self) -> dict[str, Any]:
        return {**super().state(), "schedule": self.schedule.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.schedule.load_state(state["schedule"])
        self._apply()


class IlwpPart(Part):
    """The recipes of ilwp."""

    name = "ilwp"

    def __init__(self, session: Session) -> None:
        self.session = session

    def loss(self) -> Tensor | float:
        return self.session.loss()

    def set_epoch(self, epoch: int) -> None:
        self.session.set_epoch(epoch)

    def begin_step(self) -> None:
        self.session.begin_step()

    def stage(self) -> CompressionStage:
        waits = self.session.changes and not self.session.quantizes
        return CompressionStage.UNCOMPRESSED if waits else CompressionStage.FULLY_COMPRESSED

    def state(self) -> dict[str, Any]:
        return self.session.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.session.load_state(state)


SPARSITY_PARTS = {
    "const_sparsity": ConstSparsityPart,
    "magnitude_sparsity": MagnitudeSparsityPart,
    "rb_sparsity": RBSparsityPart,
}
"""By the name of the section."""


def scopes_of(whole: Mapping[str, Any], section: Mapping[str, Any], option: str) -> list[str]:
    """The scopes of a section and of the whole config; `option` is `ignored_scopes` or `target_scopes`."""
    found: list[str] = []
    for place in (whole, section):
        value = place.get(option) or []
        found += [value] if isinstance(value, str) else value
    return found


def check_scopes(operations: Operations, whole: Mapping[str, Any], sections: Iterable[Mapping[str, Any]]) -> None:
    """Raises ConfigError where scopes of sections name nothing in the model; all of them at once."""
    found: dict[str, list[str]] = {}
    for section in sections:
        if section.get("validate_scopes", True):
            name = section["algorithm"]
            for option in ("ignored_scopes", "target_scopes"):
                found[f"{name}: {option}"] = scopes_of(whole, section, option)
            found[f"{name}: weights.ignored_scopes"] = scopes_of({}, section.get("weights", {}), "ignored_scopes")
    operations.check(found)


def patterns_of(whole: Mapping[str, Any], section: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """`ignored_scopes` and `target_scopes` that count for a section."""
    targets = scopes_of({}, section, "target_scopes") or scopes_of(whole, {}, "target_scopes")
    return scopes_of(whole, section, "ignored_scopes"), targets


def prune_masks(
    model: nn.Module, whole: Mapping[str, Any], section: Mapping[str, Any], example: Any, operations: Operations
) -> SparsityPart:
    """Put the masks of a sparsity section into a model."""
    scope = operations.ignored(*patterns_of(whole, section))
    if section["algorithm"] == "rb_sparsity":
        nncf.prune(model, PruneMode.UNSTRUCTURED_REGULARIZATION_BASED, ignored_scope=scope, examples_inputs=example)
        return RBSparsityPart(model, section)
    const = section["algorithm"] == "const_sparsity"
    part = SPARSITY_PARTS[section["algorithm"]](model, section)
    nncf.prune(
        model,
        PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
        ratio=0.0 if const else part.schedule.level(-1),
        ignored_scope=scope,
        examples_inputs=example,
    )
    if const:
        for _, parameter, mask in mask_hooks(model):
            buffer: Any = mask.binary_mask
            buffer.copy_(model.get_parameter(parameter) != 0)
    return part


_RANGES = {
    "min_max": RangeEstimatorParametersSet.MINMAX,
    "mean_min_max": RangeEstimatorParametersSet.MEAN_MINMAX,
    "mixed_min_max": RangeEstimatorParametersSet.MEAN_MINMAX,
    "mean_percentile": RangeEstimatorParametersSet.MEAN_QUANTILE,
}
_DEVICES = {"ANY": nncf.TargetDevice.ANY, "CPU": nncf.TargetDevice.CPU, "GPU": nncf.TargetDevice.GPU}
_DEVICES["NPU"] = nncf.TargetDevice.NPU
_OVERFLOW_FIXES = {
    "enable": OverflowFix.ENABLE,
    "disable": OverflowFix.DISABLE,
    "first_layer_only": OverflowFix.FIRST_LAYER,
}


def quantize(
    model: nn.Module, config: NNCFConfig, section: Mapping[str, Any], example: Any, operations: Operations
) -> nn.Module:
    """Quantization of weights and activations to int8, with ranges from the registered data.

    Returns:
        The quantized model: a copy.

    Raises:
        ConfigError: an option that NNCF 3 does not have, or no data.
    """
    if config.init_loader is None:
        raise ConfigError(
            "quantization: NNCF 3 needs data for the ranges; call register_default_init_args(config, train_loader) "
            "before create_compressed_model"
        )
    ranges = section.get("initializer", {}).get("range", {})
    kind = ranges.get("type")
    inputs = _Inputs(config, int(ranges.get("num_init_samples", 256)))
    # NNCF 2 passes over asymmetric weights in this; NNCF 3 would raise.
    asymmetric = section.get("weights", {}).get("mode") == "asymmetric"
    overflow_fix = "disable" if asymmetric else section.get("overflow_fix", "enable")
    advanced = AdvancedQuantizationParameters(
        overflow_fix=_OVERFLOW_FIXES[overflow_fix],
        disable_bias_correction=True,  # NNCF 2 has none in training
        activations_quantization_params=_parameters("activations", section),
        weights_quantization_params=_parameters("weights", section),
        **({} if kind is None else {"activations_range_estimator_params": _RANGES[kind]}),
    )
    quantized: nn.Module = nncf.quantize(
        model,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset(section.get("preset", "performance")),
        target_device=_DEVICES[config.get("target_device", "ANY")],
        subset_size=max(1, len(inputs)),
        ignored_scope=operations.ignored(*patterns_of(config, section)),
        advanced_parameters=advanced,
    )
    scopes = scopes_of({}, section.get("weights", {}), "ignored_scopes")
    if nodes := {node for scope in scopes for node in operations.match(scope)}:
        storage = get_hook_storage(quantized)
        for names in weight_quantizers(quantized, example).values():
            for name in names:
                if decode_hook_name(name)[1] in nodes:
                    storage.delete_hook(name)
    return quantized


def _parameters(group: str, section: Mapping[str, Any]) -> QuantizationParameters | None:
    values = section.get(group, {})
    if not {"mode", "per_channel"} & values.keys():
        return None
    mode = values.get("mode")
    return QuantizationParameters(
        mode=None if mode is None else QuantizationScheme(mode),
        per_channel=values.get("per_channel"),
    )


class _Inputs(Sequence[Any]):
    """The first batches of the registered data that hold so many samples."""

    def __init__(self, config: NNCFConfig, samples: int) -> None:
        self._batches: list[Any] = []
        for inputs in init_inputs(config):
            self._batches.append(inputs if len(inputs) > 1 else inputs[0])
            samples -= len(inputs[0])
            if samples <= 0:
                break
        if not self._batches:
            raise TrainingError("the data registered for initialization yield no batch")

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        return self._batches[index]


def adapt_batch_norms(model: nn.Module, config: NNCFConfig, sections: Iterable[Mapping[str, Any]]) -> None:
    """Re-estimate batch norm statistics where a section asks for it."""
    wanted = [
        s.get("initializer", {}).get("batchnorm_adaptation", {}).get("num_bn_adaptation_samples", 0) for s in sections
    ]
    if max(wanted, default=0) == 0:
        return
    if config.init_loader is None:
        raise ConfigError("batchnorm_adaptation needs data; call register_default_init_args before")
    nncf.batch_norm_adaptation(model, nncf.Dataset(_Inputs(config, max(wanted))))
