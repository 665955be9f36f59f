"""A configuration inside a toolkit's training: loss, quantization and statistics under one schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import CalibrationError, IlwpError, TrainingError, warn
from ilwp_plugin.format.sections import Summary
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.models.chains import Chains
from ilwp_plugin.models.network import Network
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.recipes.base import WeightSource
from ilwp_plugin.recipes.ilwp import IlwpTraining
from ilwp_plugin.training.parts import Parts
from ilwp_plugin.training.schedule import Schedule

__all__ = ["Session", "SessionStatistics", "warn_of_equal_steps"]


@dataclass(frozen=True)
class SessionStatistics:
    """What a training has come to.

    Attributes:
        inter_layer_loss: mean |residual| of the predicted weights, without the loss weight, in units of weight; 0
            without chains.
        loss_weight: what it is multiplied with in this epoch.
        quantizes: whether the model computes with what the file restores.
        layers: the compressed layers, as the file would store them.
        ledger: exact sizes of the file that would be written now; None where only quick statistics were asked for, or
            where no file could be made.
        why_no_sizes: why there is no ledger; empty where there is one, or none was asked for.
        numbers: of all recipes.
    """

    inter_layer_loss: float
    loss_weight: float
    quantizes: bool
    layers: tuple[Summary, ...] = ()
    ledger: Ledger | None = None
    why_no_sizes: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    def to_str(self) -> str:
        """As a table of text."""
        lines = [
            "Statistics of inter-layer weight prediction:",
            f"  inter-layer loss {self.inter_layer_loss:.6g}, weight {self.loss_weight:.4g}, "
            f"quantization {'on' if self.quantizes else 'off'}",
            *(f"  {name} {value:.6g}" for name, value in self.numbers.items()),
        ]
        if self.why_no_sizes:
            lines.append(f"  no sizes: {self.why_no_sizes}")
        if self.ledger is not None:
            width = max((len(layer.name) for layer in self.layers), default=5)
            lines.append(f"  {'layer':{width}}  kind        zeros  entropy   total bytes")
            sizes = self.ledger.layers
            for layer in self.layers:
                shown = {key: layer.details.get(key) for key in ("zeros", "entropy")}
                zeros, entropy = ("" if value is None else f"{value:.3f}" for value in shown.values())
                kind = str(layer.details.get("mode") or layer.kind)
                total = sizes[layer.name].file_bytes if layer.name in sizes else 0
                lines.append(f"  {layer.name:{width}}  {kind:10}  {zeros:>5}  {entropy:>7}  {total:>12,}")
            lines.append(f"  whole file {self.ledger.file_bytes:,} bytes")
        return "\n".join(lines)


class Session:
    """One training. A toolkit's adapter makes it, hooks `parts.weight` into the model and tells it the epochs.

    Args:
        config: what is regularized and quantized.
        schedule: when.
        network: the model that trains; an automatic loss weight is smaller where it is trained already.
        sources: by key, where the weights that can be hooked are found.
        example_inputs: see `compress`.
        calibration: by which steps are chosen, see `Parts`; a training that is resumed needs none. Where they cannot be
            chosen by it, a warning says so, and they are equal.
        resumed: whether a checkpoint will bring its own steps.
        required: whether it is an error if `ilwp` finds no chain; None where nothing else is quantized.

    Attributes:
        parts: of the recipes.
        changes: whether the file holds other values than those that train.
        loss_weight: of the inter-layer loss, or the automatic one; the schedule multiplies it.

    Raises:
        TrainingError: an automatic loss weight without `schedule.training`.
    """

    def __init__(
        self,
        config: IlwpConfig,
        schedule: Schedule,
        network: Network,
        sources: Mapping[str, WeightSource],
        *,
        example_inputs: Any = None,
        calibration: CalibrationInputs | None = None,
        resumed: bool = False,
        required: bool | None = None,
    ) -> None:
        self.config, self.schedule = config, schedule
        quantizing = sum(recipe.quantizes() for recipe in config.recipe_list())
        self.changes = quantizing > 0
        required = quantizing <= 1 if required is None else required
        make = partial(
            Parts,
            config,
            network,
            sources,
            example_inputs=example_inputs,
            resumed=resumed,
            to_the_end=False,
            required=required,
        )
        try:
            self.parts = make(calibration=calibration)
        except CalibrationError as error:
            warn_of_equal_steps(error)
            self.parts = make()
        self._ilwp = next((part for part in self.parts.parts if isinstance(part, IlwpTraining)), None)
        if self._ilwp is not None:
            self._ilwp.choose_loss_weight(
                None if schedule.training is None else schedule.training.run(), network.module, _NO_RUN
            )
        self._stepping = False
        self.set_epoch(0)

    @property
    def chains(self) -> Chains:
        """The layers that predict each other."""
        return Chains(()) if self._ilwp is None else self._ilwp.chains

    @property
    def loss_weight(self) -> float:
        """Of the inter-layer loss."""
        return 0.0 if self._ilwp is None else self._ilwp.loss_weight

    def set_epoch(self, epoch: int) -> None:
        """An epoch begins, counted from 0."""
        self._finish_step()
        self.epoch = max(0, epoch)
        self.parts.enabled = self.quantizes
        self.parts.loss_factor = self.schedule.loss_factor(self.epoch)
        self.parts.rate_factor = self.schedule.rate_factor(self.epoch)
        self.parts.begin_epoch(self.epoch)

    def begin_step(self) -> None:
        """A step begins; the one before it is over."""
        self._finish_step()
        self._stepping = True

    def _finish_step(self) -> None:
        if self._stepping:
            self.parts.after_step()
        self._stepping = False

    @property
    def quantizes(self) -> bool:
        """Whether the model computes with what the file restores in this epoch."""
        return self.changes and self.schedule.quantizes(self.epoch)

    def check_quantizes(self) -> None:
        """Raises TrainingError for a model that will compute with what the file restores, and does not yet."""
        if self.changes and not self.quantizes:
            raise TrainingError(
                "the model does not compute with quantized weights yet: params.quantization_start_epoch is "
                f"{self.schedule.quantization_start_epoch}, and this is epoch {self.epoch}"
            )

    @property
    def current_loss_weight(self) -> float:
        """The weight of the inter-layer loss in this epoch."""
        return self.loss_weight * self.schedule.loss_factor(self.epoch)

    def inter_layer_loss(self) -> Tensor:
        """The loss without its weight: the mean |residual| of the predicted weights, a float32 scalar."""
        return torch.zeros(()) if self._ilwp is None else self._ilwp.inter_layer_loss()

    def loss(self) -> Tensor:
        """The weighted losses of this epoch."""
        return self.parts.loss()

    def statistics(self, compressed: Callable[[], CompressedModel] | None = None) -> SessionStatistics:
        """What the training has come to.

        Args:
            compressed: makes the model as the file would hold it; None gives quick statistics without sizes. Where it
                raises an error of ours, the statistics say so, and have no sizes.
        """
        with torch.no_grad():
            loss = float(self.inter_layer_loss())
        file, why = None, ""
        if compressed is not None:
            try:
                file = compressed()
            except IlwpError as error:
                why = str(error)
        return SessionStatistics(
            inter_layer_loss=loss,
            loss_weight=self.current_loss_weight,
            quantizes=self.quantizes,
            layers=() if file is None else tuple(file.layers),
            ledger=None if file is None else file.ledger,
            why_no_sizes=why,
            numbers=self.parts.statistics(),
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self._finish_step()
        return {
            "config": self.config.to_dict(),
            "keys": list(self.parts.keys),
            "loss_weight": self.loss_weight,
            "epoch": self.epoch,
            "parts": self.parts.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: it is of another configuration.
        """
        own = {"config": self.config.to_dict(), "keys": list(self.parts.keys)}
        for what, value in own.items():
            if state[what] != value:
                raise TrainingError(
                    f"the checkpoint was trained with another configuration ({_differences(state[what], value)}); "
                    "resume with that of the checkpoint"
                )
        self.parts.load_state_dict(state["parts"])
        if self._ilwp is not None:
            self._ilwp.loss_weight = float(state["loss_weight"])
        self.set_epoch(int(state["epoch"]))


def _differences(before: Any, now: Any) -> str:
    """What is not alike, shortly."""
    if isinstance(before, Mapping):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return ", ".join(f"{name}: {before.get(name)!r}, now {now.get(name)!r}" for name in names)
    return ", ".join(f"{name!r} {'was' if name in before else 'is'} quantized" for name in {*before} ^ {*now})


def warn_of_equal_steps(error: CalibrationError) -> None:
    """Data that steps cannot be chosen by are no reason not to train."""
    warn(f"all layers get the same step, since the registered data do not tell which bear a larger one: {error}")


_NO_RUN = (
    "loss_weight: 'auto' scales the weight to the length of the training; say in `params` "
    '"training": {"steps": ..., "mean_lr": ..., "momentum": ...} what SGD is going to do, '
    "or set loss_weight to a number"
)
