"""What changes from epoch to epoch: the weight of the inter-layer loss, and when quantization begins."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.recipes.loss_weight import TrainingRun
from ilwp_plugin.validation import Translated

__all__ = ["Schedule", "SgdRun"]

Epoch = Annotated[int, Field(strict=True, ge=0)]
Factor = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class SgdRun(BaseModel):
    """The training to come, for an automatic loss weight where no optimizer is at hand (in a JSON file)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[int, Field(strict=True, ge=1)] = Field(description="Optimizer steps of the whole training.")
    mean_lr: Positive = Field(description="Mean learning rate over these steps.")
    momentum: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(default=0.0, description="Momentum of SGD.")

    def run(self) -> TrainingRun:
        """As the automatic loss weight wants it."""
        return TrainingRun(self.steps, self.steps * self.mean_lr / (1 - self.momentum))


class Schedule(Translated):
    """When what happens, by epoch. Frozen; unknown keys are refused.

    Raises:
        ConfigError: on any invalid field, with its path.

    >>> Schedule(loss_weight_schedule=[(2, 0.0), (4, 1.0)]).loss_factor(3)
    0.5
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="ILWP schedule")

    loss_weight_schedule: tuple[tuple[Epoch, Factor], ...] = Field(
        default=((0, 1.0),),
        min_length=1,
        description="Points [epoch, factor], in order of epochs; the loss weight is multiplied by the factor, linearly "
        "interpolated between points and constant outside.",
    )
    rate_schedule: tuple[tuple[Epoch, Factor], ...] = Field(
        default=((0, 1.0),),
        min_length=1,
        description="Points [epoch, factor], likewise, for the weight of the rate term (`rate`); a rate that rises "
        "over the first third of the epochs, [[0, 0.1], [5, 1]] for 15, lets the network follow.",
    )
    quantization_start_epoch: Epoch = Field(
        default=0, description="Epoch from which the model computes with quantized residuals; 0 is the first one."
    )
    training: SgdRun | None = Field(
        default=None, description="The run by SGD to come; needed where the loss weight is 'auto'."
    )
    calibration_samples: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=1000,
        description="Inputs of the data that are registered for initialization by which steps are chosen, layer by "
        "layer: what errors do to the outputs decides. 0, and no registered data, give all layers the same step.",
    )

    def loss_factor(self, epoch: int) -> float:
        """What the loss weight is multiplied with in an epoch, counted from 0."""
        return _interpolated(self.loss_weight_schedule, epoch)

    def rate_factor(self, epoch: int) -> float:
        """What the weight of the rate term is multiplied with in an epoch, counted from 0."""
        return _interpolated(self.rate_schedule, epoch)

    def quantizes(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, computes with quantized residuals."""
        return epoch >= self.quantization_start_epoch

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schedule:
        """From a dictionary, as JSON has it. Raises ConfigError."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"expected an object with the fields of the schedule, got {type(values).__name__}")
        return cls.model_validate(dict(values))

    @field_validator("loss_weight_schedule", "rate_schedule", mode="after")
    @classmethod
    def _rising(cls, points: Any, info: Any) -> Any:
        epochs = [epoch for epoch, _ in points]
        if any(after <= before for before, after in pairwise(epochs)):
            raise ConfigError(f"{info.field_name}: expected rising epochs, got {epochs}")
        return points


def _interpolated(points: tuple[tuple[int, float], ...], epoch: int) -> float:
    if epoch <= points[0][0]:
        return points[0][1]
    for (start, before), (end, after) in pairwise(points):
        if epoch < end:
            return before + (after - before) * (epoch - start) / (end - start)
    return points[-1][1]
