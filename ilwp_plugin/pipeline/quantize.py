"""The part of a compression that is done for every choice of steps: weights in, sections out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ilwp_plugin.errors import warn
from ilwp_plugin.format.sections import Section
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.pipeline.calibration import BatchNormMoments, calibrate
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs
from ilwp_plugin.pipeline.plan import Plan, Progress
from ilwp_plugin.recipes.base import Encoding, EncodingContext, NormFit, Recipe, kernels_of

__all__ = ["LARGE_ERROR", "Quantized", "few", "quantize"]

LARGE_ERROR = 0.5
"""Squared error of the outputs relative to their variance, from which on a model is hardly what it was."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What one pass has given.

    Attributes:
        sections: of all recipes, in their order.
        changed: tensors that no recipe claims, but calibration has changed, by key.
        notes: what has to be said of layers, by name.
        error: squared error of the outputs on the last calibration batch, relative to their variance; None without.
    """

    sections: Sequence[Section]
    changed: Mapping[str, Tensor]
    notes: Mapping[str, str]
    error: float | None


class _ProgressCounter:
    """Adds up the rows that are done: those of whole layers, and of a search within a layer."""

    def __init__(self, tell: Progress | None, total: int) -> None:
        self._tell, self._total, self._layers, self._search = tell, total, 0, 0

    def searched(self, layer: str, rows: int) -> None:
        self._search += rows
        if self._tell is not None:
            self._tell(layer, self._layers + self._search, self._total)

    def finished(self, layer: str, rows: int) -> None:
        self._layers, self._search = self._layers + rows, 0
        if self._tell is not None:
            self._tell(layer, min(self._layers, self._total), self._total)


class _Pass:
    """Hands every tensor to the encoding of its owner; a `calibration.Visitor`."""

    def __init__(self, plan: Plan, recipes: Sequence[Recipe], progress: Progress | None, trained: bool) -> None:
        self._plan, self._trained = plan, trained
        rows = sum(kernels_of(plan.network.state[key]) for claims in plan.claims for key in claims.tensors)
        counter = _ProgressCounter(progress, rows)
        context = EncodingContext(
            plan.network, plan.infos, plan.steps(recipes), plan.request.references, counter.finished, counter.searched
        )
        self.encodings = [recipe.encode(claims, context) for recipe, claims in zip(recipes, plan.claims, strict=True)]
        self._owner: dict[str, Encoding] = {
            key: encoding
            for encoding, claims in zip(self.encodings, plan.claims, strict=True)
            for key in claims.tensors
        }
        self.changed: dict[str, Tensor] = {}

    @property
    def layers(self) -> set[str]:
        """Names of the layers whose weights are claimed."""
        return {name for name, layer in self._plan.network.layers.items() if layer.weight in self._owner}

    def layer(self, name: str, module: nn.Module, feedback: Feedback) -> tuple[Tensor, Tensor | None]:
        """See `calibration.Visitor`."""
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        key, network = f"{name}.weight", self._plan.network
        weight, transposed = network.from_module(name, weight)
        feedback = feedback.seen_as(weight.shape, transposed)
        if self._trained:  # the module has what its weights are restored to, and the network what they come from
            restored = self._owner[key].quantize(key, network.state[key]).to(weight.device)
        else:
            restored = self._owner[key].quantize(key, weight, feedback)
        if not isinstance(bias, Tensor):
            return network.in_module(name, restored), None
        key = f"{name}.bias"
        corrected = bias + feedback.bias_correction(weight, restored).to(bias.dtype)
        if key in self._owner:
            return network.in_module(name, restored), self._owner[key].quantize(key, corrected)
        self.changed[key] = corrected
        return network.in_module(name, restored), corrected

    def batch_norm(self, name: str, module: nn.Module, moments: BatchNormMoments) -> Mapping[str, Tensor]:
        """See `calibration.Visitor`."""
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        assert isinstance(module.running_var, Tensor)
        mean, variance, mean_output, spread, slope = moments.fit()
        if (owner := self._owner.get(f"{name}.weight")) is not None:
            plain = module.weight.double() / torch.sqrt(variance + module.eps)
            fit = NormFit(torch.where(slope.isnan(), plain, slope), mean, mean_output, spread)
            return owner.norm(name, fit)
        unbiased = variance * moments.count / max(1, moments.count - 1)
        values = {"running_mean": mean.float(), "running_var": unbiased.float()}
        self.changed.update({f"{name}.{key}": value for key, value in values.items()})
        return values


def quantize(
    plan: Plan,
    recipes: Sequence[Recipe] | None = None,
    calibration: CalibrationInputs | None = None,
    progress: Progress | None = None,
    *,
    trained: bool = False,
) -> Quantized:
    """Encode all that is claimed, with error feedback where there are calibration inputs.

    Args:
        plan: what is claimed.
        recipes: the plan's own at other settings; None for the plan's own.
        calibration: calibration inputs.
        progress: is told the layer, how many rows or kernels are done, and of how many.
        trained: whether weights keep the codes that they were trained for; only norms and biases follow the inputs.
    """
    visitor = _Pass(plan, recipes or plan.recipes, progress, trained)
    error = None
    if calibration is not None:
        module = plan.network.runnable()
        assert module is not None
        calibrated = calibrate(module, calibration, visitor, visitor.layers)
        error = calibrated.error
        if error > LARGE_ERROR:
            warn(f"the outputs on the calibration inputs change by {error:.0%} of their variance; choose smaller steps")
        if missed := sorted(visitor.layers - calibrated.layers):
            warn(
                f"{few(missed)}: rounded alone; calibration reaches convolutions and Linear layers that the model calls"
            )
    notes: dict[str, str] = {}
    sections: list[Section] = []
    state = {name: tensor.detach().cpu() for name, tensor in plan.network.state.items()}
    for encoding in visitor.encodings:
        encoding.finish(state)
        sections += encoding.sections()
        notes.update(encoding.notes)
    return Quantized(sections, visitor.changed, notes, error)


def few(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more or "nothing"
