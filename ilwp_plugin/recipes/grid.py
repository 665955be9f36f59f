"""The recipe `grid`: weights as integer codes times a step for each layer, with error feedback where there is data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.format.sections import GridSection, Section
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.method.grid import check_codes, grid_codes, grid_integers, restore_codes
from ilwp_plugin.method.rounding import dead_zone_rounding, naming
from ilwp_plugin.models.network import Network
from ilwp_plugin.recipes.base import (
    AUTO,
    RECIPES,
    Claims,
    Encoding,
    EncodingContext,
    Knobs,
    Options,
    Recipe,
    Request,
    Step,
    StepGroup,
    TrainingPart,
    Weight,
    WeightEncoding,
    WeightRecipe,
    WeightSource,
    WeightTraining,
)

__all__ = ["CALIBRATED_DEAD_ZONE", "Grid", "GridOptions", "GridTraining", "StepOptions"]

CALIBRATED_DEAD_ZONE = 0.66
"""Where error feedback and batch norms make up for what becomes 0; in steps."""

BIAS_SHARE = 1 / 4
"""Step of a bias, in steps of its layer's weight."""


class StepOptions(Options):
    """How steps are spread over layers, and what their codes cost in training."""

    step_allocation: Literal["auto", "equal", "measured"] = Field(
        default=AUTO,
        description="'measured' gives each layer a step of its own, smaller where an error changes the outputs more: "
        "`residual_step` and `weight_step` are then geometric means. Needs calibration inputs; 'auto' measures where "
        "there are some.",
    )
    rate: Weight = Field(
        default=0.0,
        description="Weight of the rate term in training: what the loss may rise by for one bit a weight less, of all "
        "weights that have a step of their own. 0 leaves the rate to the steps; .5 to 1 is much.",
    )


class GridOptions(StepOptions):
    """Of `Grid`."""

    weight_step: Step | Literal["auto"] | None = Field(
        default=AUTO,
        description="One absolute step for the weights outside chains, in units of weight. 'auto' loses no more than "
        "8-bit integers with a scale for each output; with calibration inputs, a step that the outputs bear, which "
        "is larger in a training with a `rate`. null keeps the weights.",
    )
    dead_zone: Annotated[float, Field(strict=True, ge=0.5, le=1)] | Literal["auto"] = Field(
        default=AUTO,
        description="Weights outside chains become 0 below this many steps, 0.5 to 1; 0.5 is plain rounding. More than "
        "0.5 needs calibration inputs or training, so that the rest of the network can follow; 'auto' is "
        f"{CALIBRATED_DEAD_ZONE} with calibration inputs, else 0.5.",
    )
    weight_bits: Annotated[int, Field(strict=True, ge=2, le=16)] | None = Field(
        default=None,
        description="Bits of a code of these weights at most, as hardware has them: a layer whose largest weight needs "
        "more gets a larger step. null sets no limit.",
    )
    feedback_damping: Step = Field(
        default=10.0,
        description="Damping of the error feedback of these weights, as a share of the mean input energy. Small "
        "values, like .03, follow the calibration inputs more closely, at the price of larger codes.",
    )
    biases: bool = Field(
        default=True,
        strict=True,
        description="Whether biases of these layers are put on a grid of a quarter of the weight step, too, and other "
        "vectors that are called a weight or a bias, as layer norms have them, on one that is as exact as 9 bits.",
    )


@dataclass(frozen=True)
class GridClaims(Claims):
    """Weights first, then biases, then other vectors.

    Attributes:
        weights: by key of a bias, the key of its layer's weight.
        vectors: keys of the others.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    vectors: tuple[str, ...] = ()


@RECIPES.register("grid")
class Grid(WeightRecipe):
    """Every weight that is left, and biases."""

    name: ClassVar[str] = "grid"
    options_type: ClassVar[type[Options]] = GridOptions
    options: GridOptions

    def quantizes(self) -> bool:
        return self.options.weight_step is not None

    def resolved(self, calibrated: bool, trains: bool = False) -> Recipe:
        changes: dict[str, Any] = {}
        if self.options.dead_zone == AUTO:  # in training a dead zone costs accuracy and gains nothing
            changes["dead_zone"] = CALIBRATED_DEAD_ZONE if calibrated and not trains else 0.5
        if self.options.step_allocation == AUTO:
            changes["step_allocation"] = "measured" if calibrated else "equal"
        return Grid(self.options.changed(**changes))

    def at(self, knobs: Knobs) -> Recipe | None:
        return Grid(self.options.changed(weight_step=knobs.weight_step, dead_zone=knobs.dead_zone))

    def claim(self, network: Network, free: Collection[str], request: Request) -> Claims:
        if self.options.weight_step is None:
            free_layers = [name for name, layer in network.layers.items() if layer.weight in free]
            return Claims(left=dict.fromkeys(free_layers, "kept: weight_step is null"))
        claims = super().claim(network, free, request)
        owners = {
            layer.bias: layer.weight
            for name, layer in network.layers.items()
            if layer.bias is not None and layer.bias in free and name not in claims.left
        }
        if not self.options.biases:
            return GridClaims(claims.tensors, claims.left)
        places = {key: name for key, name in network.holders.items() if key in free}
        outside = self.options.outside_scopes(places.values())
        left = {key: outside[place] for key, place in places.items() if place in outside}
        vectors = tuple(key for key in places if key not in left)
        return GridClaims((*claims.tensors, *owners, *vectors), {**claims.left, **left}, owners, vectors)

    def step_groups(self, network: Network, claims: Claims) -> Sequence[StepGroup]:
        step = self.options.weight_step
        if step is None or not claims.tensors:
            return ()
        others = {*claims.weights, *claims.vectors} if isinstance(claims, GridClaims) else set()
        keys = tuple(key for key in claims.tensors if key not in others)
        if not keys:
            return ()
        least: dict[str, float] = {}
        if self._largest is not None:
            least = {key: float(network.state[key].detach().abs().max()) / self._largest for key in keys}
        return (StepGroup(step, keys, self.options.step_allocation == "measured", least=least),)

    @property
    def _largest(self) -> int | None:
        """The largest code of a weight, where there is a limit."""
        bits = self.options.weight_bits
        return None if bits is None else (1 << (bits - 1)) - 1

    def encode(self, claims: Claims, context: EncodingContext) -> Encoding:
        assert isinstance(claims, GridClaims) or not claims.tensors
        return _GridEncoding(self, claims, context)

    def check(self, calibrated: bool, trains: bool = False) -> None:
        if calibrated:
            return
        if self.options.dead_zone != AUTO and self.options.dead_zone > 0.5 and not trains:
            raise ConfigError(
                f"dead_zone: {self.options.dead_zone} needs calibration inputs; without them 0.5 is the only choice"
            )
        if self.options.step_allocation == "measured":
            raise ConfigError(
                "step_allocation: 'measured' needs calibration inputs, and a weight_step or a residual_step"
            )

    def train(
        self,
        network: Network,
        claims: Claims,
        sources: Mapping[str, WeightSource],
        steps: Mapping[str, float],
        request: Request,
    ) -> TrainingPart | None:
        # A layer with one output is a vector, whose step is chosen when the file is made.
        own = {key: sources[key] for key in claims.tensors if key in sources and key in steps}
        return GridTraining(self, own, {key: steps[key] for key in own}) if own else None

    def quantize(
        self, key: str, weight: Tensor, step: float | None, feedback: Feedback | None
    ) -> tuple[IntegerTensor, Tensor]:
        assert step is not None, "a step is chosen for each weight of the grid"
        dead_zone = 0.5 if self.options.dead_zone == AUTO else self.options.dead_zone
        scale = np.asarray(step, np.float32)
        with naming(f"tensor {key!r}"):
            if feedback is None:
                whole, restored = grid_integers(weight, step, dead_zone, self._largest)
                return IntegerTensor(whole, scale), restored
            target = feedback.target(weight)
            rounding = dead_zone_rounding(dead_zone, self._largest)
            codes = feedback.codes(target, torch.zeros_like(target), step, rounding, self.options.feedback_damping)
            check_codes(codes, step)
        return IntegerTensor(codes.cpu().numpy().astype(np.int16), scale), restore_codes(codes, step)

    def restored(self, key: str, weight: Tensor, step: float | None) -> Tensor:
        assert step is not None
        dead_zone = 0.5 if self.options.dead_zone == AUTO else self.options.dead_zone
        return restore_codes(grid_codes(weight, step, dead_zone, self._largest), step).to(weight.dtype)

    def sections(self, entries: Sequence[tuple[TensorInfo, Any]]) -> Sequence[Section]:
        infos, values = zip(*entries, strict=True)
        return [GridSection(tuple(infos), tuple(values), self.options.coder)]


LARGEST_BIAS_CODE = 1 << 13
"""A bias that is so many steps large gets a larger step."""

SMALLEST_STEP = float(torch.finfo(torch.float32).smallest_normal)

VECTOR_STEPS = 256
"""Steps of a vector that is no bias, in its root mean square: the error is about a thousandth of it."""


class GridTraining(WeightTraining):
    """Weights on the grid while a model trains, with what their codes cost in the loss.

    Args:
        recipe: the recipe.
        sources: by key.
        steps: likewise.
    """

    def __init__(self, recipe: Grid, sources: Mapping[str, WeightSource], steps: Mapping[str, float]) -> None:
        super().__init__(recipe, sources, steps, recipe.options.rate)

    def levels(self) -> Mapping[str, Tensor]:
        return {key: source.weight().float() / self._steps[key] for key, source in self.sources.items()}


class _GridEncoding(WeightEncoding):
    """Biases get a finer step than the weight of their layer, other vectors one of their own; no dead zone either."""

    def __init__(self, recipe: Grid, claims: Claims, context: EncodingContext) -> None:
        self._biases = claims.weights if isinstance(claims, GridClaims) else {}
        own = [context.steps[key] for key in claims.tensors if key in context.steps]
        mean = math.exp(sum(map(math.log, own)) / len(own)) if own else None
        steps = dict(context.steps)
        for bias, weight in self._biases.items():
            step = steps[weight] if weight in claims.tensors else mean
            steps[bias] = _vector_step(context.network.state[bias]) if step is None else step * BIAS_SHARE
        vectors = claims.vectors if isinstance(claims, GridClaims) else ()
        steps.update({key: _vector_step(context.network.state[key]) for key in vectors})
        self._rounded = {*self._biases, *vectors}
        super().__init__(recipe, claims, replace(context, steps=steps))
        self._weights, self._plain = recipe, Grid(recipe.options.changed(dead_zone=0.5, weight_bits=None))

    def quantize(self, key: str, value: Tensor, feedback: Feedback | None = None) -> Tensor:
        self._recipe = self._plain if key in self._rounded else self._weights
        if (
            key in self._rounded and value.numel()
        ):  # nobody chose its step: where weights are tiny it stays one that fits
            largest = float(value.detach().abs().nan_to_num(0, 0, 0).max())
            steps = {**self.context.steps, key: max(self.context.steps[key], largest / LARGEST_BIAS_CODE)}
            self.context = replace(self.context, steps=steps)
        return super().quantize(key, value, feedback)


def _vector_step(vector: Tensor) -> float:
    square = float(vector.detach().cpu().double().square().mean())
    return max(math.sqrt(square) / VECTOR_STEPS, SMALLEST_STEP) if math.isfinite(square) else 1.0
