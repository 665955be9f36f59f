"""The recipe `universal`: dithered lattice quantization and a universal source code (Choi, El-Khamy, Lee 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.sections import DitheredSection, DitheredTensor, Lattice, Section
from ilwp_plugin.method.codebooks import entropy_of
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.method.lattice import as_array, dither_of, lattice_codes, lattice_values
from ilwp_plugin.method.rounding import naming
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
    WeightRecipe,
    WeightSource,
    WeightTraining,
)
from ilwp_plugin.recipes.codebook import OwnOptimizer
from ilwp_plugin.recipes.grid import StepOptions

__all__ = ["Universal", "UniversalOptions", "UniversalTraining"]


class UniversalOptions(StepOptions):
    """Of `Universal`."""

    step: Step | Literal["auto"] = Field(
        default=AUTO,
        description="Distance of two points of the lattice, in units of weight. 'auto' loses no more than 8-bit "
        "integers; with calibration inputs, a step that the outputs bear.",
    )
    rate_weight: Weight = Field(
        default=0.1, description="What a bit is worth in rounding, in squared steps; 0 rounds to the nearest point."
    )
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 63)] = Field(
        default=0, description="Of the dither; it is in the file."
    )
    levels: Literal["lattice", "trained"] = Field(
        default="lattice",
        description="'lattice' stores no codebook; 'trained' fine-tunes what each code stands for, and stores it.",
    )
    hold_from: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=1, description="Epoch, from 0, from which on codes stay and levels are trained, if they are."
    )
    lr: Step = Field(default=0.002, description="Learning rate of the levels, of Adam, in steps.")
    coder: str = Field(
        default="lzma",
        description="Coder of all codes: lzma, the universal one; huffman, ans, or 'auto', the smaller of these two.",
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """What training has come to.

    Attributes:
        codes: by key, int64 in the weight's shape.
        lowest: the code of the first level.
        levels: (n,) float32, in steps.
    """

    codes: Mapping[str, Tensor]
    lowest: int
    levels: Tensor


class UniversalTraining(WeightTraining):
    """Weights are what the file restores; where levels are trained, from some epoch on their codes stay."""

    def __init__(self, recipe: Universal, sources: Mapping[str, WeightSource], steps: Mapping[str, float]) -> None:
        super().__init__(recipe, sources, steps)
        self._own = recipe
        self._epoch = -1
        self._trained: Trained | None = None
        self._optimizer: OwnOptimizer | None = None

    def begin_epoch(self, epoch: int) -> None:
        if epoch > self._epoch:  # else it is told again, after a resumption
            self._epoch = epoch
            options = self._own.options
            if options.levels == "trained" and epoch >= options.hold_from and self._trained is None and self.enabled:
                self._hold()

    @torch.no_grad()
    def _hold(self) -> None:
        codes = {
            key: self._own.codes(key, source.weight().detach(), self._steps[key]).cpu()
            for key, source in self.sources.items()
        }
        lowest = min(int(own.min()) for own in codes.values())
        highest = max(int(own.max()) for own in codes.values())
        self._learn(Trained(codes, lowest, torch.arange(lowest, highest + 1).float()))

    def _learn(self, trained: Trained) -> OwnOptimizer:
        self._trained = trained
        self._optimizer = OwnOptimizer({"levels": (trained.levels, self._own.options.lr)})
        return self._optimizer

    def weight(self, key: str, weight: Tensor) -> Tensor:
        if self._trained is None or not self.enabled:
            return super().weight(key, weight)
        values = self._values(self._trained, key, weight).to(weight.dtype)
        return values + 0 * weight  # a path to the weight, or a process group waits for a gradient that never comes

    def _values(self, trained: Trained, key: str, like: Tensor) -> Tensor:
        codes = trained.codes[key].to(like.device)
        moved = self._own.dither(key, like)
        return lattice_values(codes, self._steps[key], moved, trained.levels, trained.lowest)

    def restored(self, key: str, weight: Tensor) -> Tensor:
        if self._trained is None:
            return super().restored(key, weight)
        with torch.no_grad():
            return self._values(self._trained, key, weight).to(weight.dtype)

    def after_step(self) -> None:
        if self._optimizer is not None:
            self._optimizer.step()

    def encoder(self) -> Recipe | None:
        return None if self._trained is None else self._own.fixed(self._trained)

    def state(self) -> dict[str, Any]:
        own: dict[str, Any] = {"epoch": self._epoch, "trained": None}
        if self._trained is not None and self._optimizer is not None:
            own["trained"] = [dict(self._trained.codes), self._trained.lowest, self._trained.levels.detach().clone()]
            own["optimizer"] = self._optimizer.state()
        return {**super().state(), **own}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._epoch, self._trained, self._optimizer = int(state["epoch"]), None, None
        if state["trained"] is not None:
            codes, lowest, levels = state["trained"]
            own = Trained({key: value.cpu() for key, value in codes.items()}, int(lowest), levels.cpu().clone())
            self._learn(own).load(state["optimizer"])

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        if self._trained is not None:
            codes = dict(self._trained.codes)
        else:
            codes = {k: self._own.codes(k, s.weight().detach(), self._steps[k]) for k, s in self.sources.items()}
        whole = torch.cat([own.flatten().cpu() for own in codes.values()])
        found, counts = torch.unique(whole, return_counts=True)
        return {
            "universal: distinct codes": float(len(found)),
            "universal: entropy in bits": entropy_of(counts),
            "universal: zeros": float((whole == 0).double().mean()),
        }


@RECIPES.register("universal")
class Universal(WeightRecipe):
    """Every weight on a lattice that a dither from a shared seed has moved.

    Args:
        options: of the recipe.
        streams: by key, the number of its dither.
        trained: codes and levels of a training, which take the place of rounding.
    """

    name: ClassVar[str] = "universal"
    options_type: ClassVar[type[Options]] = UniversalOptions
    options: UniversalOptions

    def __init__(self, options: Any, streams: Mapping[str, int] | None = None, trained: Trained | None = None) -> None:
        super().__init__(options)
        self._streams, self._trained = dict(streams or {}), trained

    def _numbered(self, claims: Claims) -> Universal:
        """The same, which knows the dither of each of some weights; one that it knows already stays."""
        known = self._streams or {key: number for number, key in enumerate(claims.tensors)}
        return Universal(self.options, known, self._trained)

    def fixed(self, trained: Trained) -> Universal:
        """The same with what training has come to."""
        return Universal(self.options, self._streams, trained)

    def resolved(self, calibrated: bool, trains: bool = False) -> Recipe:
        if self.options.step_allocation != AUTO:
            return self
        return Universal(self.options.changed(step_allocation="measured" if calibrated else "equal"))

    def check(self, calibrated: bool, trains: bool = False) -> None:
        if self.options.step_allocation == "measured" and not calibrated:
            raise ConfigError("step_allocation: 'measured' needs calibration inputs")

    def at(self, knobs: Knobs) -> Recipe | None:
        return Universal(self.options.changed(step=knobs.weight_step))

    def step_groups(self, network: Network, claims: Claims) -> Sequence[StepGroup]:
        if not claims.tensors:
            return ()
        return (StepGroup(self.options.step, claims.tensors, self.options.step_allocation == "measured"),)

    def encode(self, claims: Claims, context: EncodingContext) -> Encoding:
        return WeightRecipe.encode(self._numbered(claims), claims, context)

    def train(
        self,
        network: Network,
        claims: Claims,
        sources: Mapping[str, WeightSource],
        steps: Mapping[str, float],
        request: Request,
    ) -> TrainingPart | None:
        own = {key: sources[key] for key in claims.tensors if key in sources}
        return UniversalTraining(self._numbered(claims), own, {key: steps[key] for key in own}) if own else None

    def dither(self, key: str, like: Tensor) -> Tensor:
        """Of a weight, in its shape and place."""
        return dither_of(self.options.seed, self._streams[key], like)

    def codes(self, key: str, weight: Tensor, step: float) -> Tensor:
        """int64 in the weight's shape."""
        if self._trained is not None and key in self._trained.codes:
            return self._trained.codes[key].to(weight.device)
        with naming(f"tensor {key!r}"):
            return lattice_codes(weight, step, self.dither(key, weight), self.options.rate_weight)

    def quantize(self, key: str, weight: Tensor, step: float | None, feedback: Feedback | None) -> tuple[Any, Tensor]:
        assert step is not None, "a step is chosen for each weight of the lattice"
        codes = self.codes(key, weight, step)
        levels = None if self._trained is None else self._trained.levels.detach()
        lowest = 0 if self._trained is None else self._trained.lowest
        values = lattice_values(codes, step, self.dither(key, weight), levels, lowest)
        return (as_array(codes), float(np.float32(step)), self._streams[key]), values

    def sections(self, entries: Sequence[tuple[TensorInfo, Any]]) -> Sequence[Section]:
        tensors = [DitheredTensor(info, step, stream, codes) for info, (codes, step, stream) in entries]
        lattice = Lattice(self.options.seed)
        if self._trained is not None:
            levels = self._trained.levels.detach().numpy().astype(np.float32) + np.float32(0)
            lattice = Lattice(self.options.seed, self._trained.lowest, levels)
        return [DitheredSection(lattice, tensors, self.options.coder)]
