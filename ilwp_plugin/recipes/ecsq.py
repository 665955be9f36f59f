"""The recipe `ecsq`: entropy-constrained scalar quantization of all layers together (Choi, El-Khamy, Lee 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.method.codebooks import Codebooks, Codes
from ilwp_plugin.method.entropy_constrained import Quantizer, assign, ideal_bits, lloyd, uniform
from ilwp_plugin.method.quantization import straight_through
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
    WeightSource,
    check_finite,
)
from ilwp_plugin.recipes.codebook import CodebookOptions, CodebookRecipe, CodebookTraining, Groups
from ilwp_plugin.recipes.grid import StepOptions

__all__ = ["Ecsq", "EcsqOptions", "EcsqTraining", "SecondMoments"]

_SAMPLE = 1 << 20
"""Weights that entries are made of; all get one of them."""

_LEAST = 0.05
"""Of the mean: what an error in a weight costs at least. A weight whose gradient happened to be 0 is not worthless."""


class EcsqOptions(StepOptions, CodebookOptions):
    """Of `Ecsq`."""

    codebook: Literal["layer", "kind", "network"] = Field(
        default="network",
        description="Which weights share a codebook: those of the whole network (the paper's), of all layers of a "
        "kind, or of a layer.",
    )
    quantizer: Literal["lloyd", "uniform"] = Field(
        default="lloyd",
        description="'lloyd' iterates between entries and codes, errors and bits weighed against each other; 'uniform' "
        "rounds to multiples of the step, and stores the mean of what falls together.",
    )
    step: Step | Literal["auto"] = Field(
        default=AUTO,
        description="Distance of the first entries, in units of weight. 'auto' is as coarse, over all weights, as "
        "8-bit integers are; with calibration inputs, as the outputs bear.",
    )
    rate_weight: Weight = Field(
        default=0.1, description="What a bit is worth, in squared steps; of 'lloyd'. More makes smaller, worse files."
    )
    sensitivity: Literal["auto", "gradient", "layer", "equal"] = Field(
        default=AUTO,
        description="What tells how much an error in a weight costs: 'gradient', the second moment of its gradient in "
        "training, as Adam has it; 'layer', what errors in its layer do to the outputs, with calibration inputs; "
        "'equal', nothing. 'auto' is the first of these that there is.",
    )
    hold_from: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=1,
        description="Epoch, from 0, from which on weights are entries; before it weights train as they are, and their "
        "gradients are measured.",
    )
    train: Literal["weights", "entries"] = Field(
        default="weights",
        description="What learns from then on: 'weights', which get entries anew in each step, of a table that is made "
        "anew in each epoch; or 'entries', whose members stay (the paper's).",
    )


_MEASURED = {AUTO: "", "gradient": "", "equal": "", "layer": "measured"}
"""What a sensitivity asks of the allocation of steps."""


class SecondMoments:
    """Running means of the squared gradients of weights, as Adam has them."""

    DECAY = 0.99

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def watched(self, key: str, weight: Tensor) -> Tensor:
        """The same weight, whose gradient will be counted."""
        if not weight.requires_grad:
            return weight
        seen = weight.view_as(weight)
        seen.register_hook(lambda gradient: self._add(key, gradient.detach()))  # type: ignore[no-untyped-call]
        return seen

    def _add(self, key: str, gradient: Tensor) -> None:
        square = gradient.float().square()
        known = self._sums.get(key)
        self._sums[key] = square if known is None else known * self.DECAY + square * (1 - self.DECAY)

    def values(self) -> dict[str, Tensor]:
        """By key, the mean over all processes of a group."""
        if dist.is_available() and dist.is_initialized():
            for value in self._sums.values():
                dist.all_reduce(value)
                value /= dist.get_world_size()
        return dict(self._sums)

    def state(self) -> dict[str, Tensor]:
        """For checkpoints."""
        return dict(self._sums)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self._sums = dict(state)


@dataclass(frozen=True, eq=False)
class _Table:
    """The table of a group while weights train.

    Attributes:
        entries, bits: see `Quantizer`.
        rate: what a bit costs.
        costs: by key, (n,) float32, of errors; empty for 1.
    """

    entries: Tensor
    bits: Tensor
    rate: float
    costs: Mapping[str, Tensor]

    def indices(self, key: str, weight: Tensor) -> Tensor:
        """(n,) int64 of a weight."""
        values = weight.detach().cpu().float().flatten()
        return assign(values, self.costs.get(key), self.entries, self.bits, self.rate)[0]


class EcsqTraining(CodebookTraining):
    """Weights train as they are while their gradients are measured; then they are entries."""

    recipe: Ecsq
    damped = True

    def __init__(self, recipe: CodebookRecipe, sources: Mapping[str, WeightSource], groups: Groups) -> None:
        super().__init__(recipe, sources, groups)
        self._moments = SecondMoments()
        self._tables: list[_Table] | None = None
        self._group = {key: number for number, group in enumerate(groups) for key in group}

    def free(self, key: str, weight: Tensor) -> Tensor:
        if self.books is not None:
            return weight
        seen = self._moments.watched(key, weight)
        if self._tables is None:
            return seen
        table = self._tables[self._group[key]]
        values = table.entries[table.indices(key, weight)].reshape(weight.shape)
        return straight_through(seen, values.to(weight.device, weight.dtype))

    def phase(self, epoch: int) -> None:
        options = self.recipe.options
        if epoch < options.hold_from or self.books is not None:
            return
        if options.train == "entries":
            books = self.final()
            self.hold(books, [book[:, 0] != 0 for book in books.books])
        else:
            recipe, weights = self.recipe.measured(self._moments.values()), self.weights()
            self._tables = [self._table(recipe, {key: weights[key] for key in group}) for group in self.groups]

    @torch.no_grad()
    def _table(self, recipe: Ecsq, weights: Mapping[str, Tensor]) -> _Table:
        own = {key: weight.cpu() for key, weight in weights.items()}
        costs, step = recipe.costs(own), recipe.step(own)
        quantizer = recipe.quantizer(torch.cat([weight.float().flatten() for weight in own.values()]), costs, step)
        parts = [] if costs is None else torch.split(costs, [weight.numel() for weight in own.values()])
        return _Table(quantizer.entries, quantizer.bits, recipe.rate(step), dict(zip(own, parts, strict=False)))

    @torch.no_grad()
    def final(self) -> Codebooks:
        if self.books is not None:
            return super().final()
        weights = self.weights()
        if self._tables is None:
            for key, weight in weights.items():
                check_finite(key, weight)
            return self.recipe.measured(self._moments.values()).share(weights, self.groups)
        codes = {
            key: Codes(number, self._tables[number].indices(key, weights[key])) for key, number in self._group.items()
        }
        return Codebooks(tuple(table.entries[:, None] for table in self._tables), codes)

    def state(self) -> dict[str, Any]:
        tables = None
        if self._tables is not None:
            tables = [[table.entries, table.bits, table.rate, dict(table.costs)] for table in self._tables]
        return {**super().state(), "moments": self._moments.state(), "tables": tables}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._moments.load(state["moments"])
        self._tables = None if state["tables"] is None else [_Table(*values) for values in state["tables"]]


@RECIPES.register("ecsq")
class Ecsq(CodebookRecipe):
    """One table for all weights, made for the bits of their indices.

    Args:
        options: of the recipe.
        steps: by key, how coarse a weight may be; its errors cost as the inverse square.
        moments: by key, the second moments of gradients, in the weight's shape.
    """

    name: ClassVar[str] = "ecsq"
    options_type: ClassVar[type[Options]] = EcsqOptions
    options: EcsqOptions
    training: ClassVar[type[CodebookTraining]] = EcsqTraining

    def __init__(
        self, options: Any, steps: Mapping[str, float] | None = None, moments: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(options)
        self._steps, self._moments = dict(steps or {}), dict(moments or {})

    def resolved(self, calibrated: bool, trains: bool = False) -> Recipe:
        if self.options.step_allocation != AUTO:
            return self
        measured = calibrated and self.options.sensitivity in (AUTO, "layer")
        return Ecsq(self.options.changed(step_allocation="measured" if measured else "equal"))

    def check(self, calibrated: bool, trains: bool = False) -> None:
        if not calibrated and "measured" in (self.options.step_allocation, _MEASURED[self.options.sensitivity]):
            raise ConfigError("sensitivity: 'layer', and step_allocation: 'measured', need calibration inputs")

    def at(self, knobs: Knobs) -> Recipe | None:
        return Ecsq(self.options.changed(step=knobs.weight_step))

    def step_groups(self, network: Network, claims: Claims) -> Sequence[StepGroup]:
        if not claims.tensors:
            return ()
        return (StepGroup(self.options.step, claims.tensors, self.options.step_allocation == "measured"),)

    def encode(self, claims: Claims, context: EncodingContext) -> Encoding:
        return CodebookRecipe.encode(Ecsq(self.options, context.steps, self._moments), claims, context)

    def train(
        self,
        network: Network,
        claims: Claims,
        sources: Mapping[str, WeightSource],
        steps: Mapping[str, float],
        request: Request,
    ) -> TrainingPart | None:
        return CodebookRecipe.train(Ecsq(self.options, steps), network, claims, sources, steps, request)

    def measured(self, moments: Mapping[str, Tensor]) -> Ecsq:
        """The same with second moments of gradients."""
        return Ecsq(self.options, self._steps, moments)

    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        return Codebooks.all(self._shared({key: weights[key].cpu() for key in group}) for group in groups)

    def _shared(self, weights: Mapping[str, Tensor]) -> Codebooks:
        values = torch.cat([weight.float().flatten() for weight in weights.values()])
        costs = self.costs(weights)
        quantizer = self.quantizer(values, costs, self.step(weights))
        parts = torch.split(quantizer.indices, [weight.numel() for weight in weights.values()])
        codes = {key: Codes(0, part) for key, part in zip(weights, parts, strict=True)}
        return Codebooks((quantizer.entries[:, None],), codes)

    def quantizer(self, values: Tensor, costs: Tensor | None, step: float) -> Quantizer:
        """The table for some values.

        Args:
            values: (n,) float32.
            costs: (n,) float32, of errors, 1 in the mean; None for 1.
            step: in units of weight.
        """
        if self.options.quantizer == "uniform":
            return uniform(values, costs, step)
        rate = self.rate(step)
        every = -(-len(values) // _SAMPLE)
        if every == 1:
            return lloyd(values, costs, step, rate)
        some = lloyd(values[::every].contiguous(), None if costs is None else costs[::every].contiguous(), step, rate)
        indices, total = assign(values, costs, some.entries, some.bits, rate)
        counts = torch.bincount(indices, minlength=len(some.entries))
        return Quantizer(some.entries, indices, ideal_bits(counts), total / len(values))

    def rate(self, step: float) -> float:
        """What a bit costs, in squared units of weight."""
        return 0.0 if self.options.quantizer == "uniform" else self.options.rate_weight * step * step

    def step(self, weights: Mapping[str, Tensor]) -> float:
        """One for all: the errors in all weights together cost what they would at the steps of the layers."""
        if self.options.step != AUTO:
            return self.options.step
        known = [(weight.numel(), self._steps[key]) for key, weight in weights.items() if key in self._steps]
        if not known:
            return 1.0
        return float((sum(n for n, _ in known) / sum(n / step**2 for n, step in known)) ** 0.5)

    def costs(self, weights: Mapping[str, Tensor]) -> Tensor | None:
        """(n,) float32 of all values together, 1 in the mean."""
        asked = self.options.sensitivity
        if asked in (AUTO, "gradient") and all(key in self._moments for key in weights):
            # The square root, as the paper has it where Adam's moments stand for the Hessian's diagonal.
            found = torch.cat([self._moments[key].flatten().cpu().float().sqrt() for key in weights])
        elif self.options.step_allocation == "measured" and all(key in self._steps for key in weights):
            own = [torch.full((weight.numel(),), self._steps[key] ** -2) for key, weight in weights.items()]
            found = torch.cat(own)
        else:
            return None
        mean = float(found.double().mean())
        return (found / mean).clamp(min=_LEAST) if mean > 0 else None
