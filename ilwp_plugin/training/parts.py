"""All recipes of a configuration in one training; the same for our own loops and for every toolkit's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.method.entropy_model import entropy_bits
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.torch_network import Model, network_of
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs
from ilwp_plugin.pipeline.compress import trained_file
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.pipeline.plan import make_plan
from ilwp_plugin.recipes.base import Recipe, Request, TrainingPart, WeightSource
from ilwp_plugin.recipes.batch_norm import BatchNorm
from ilwp_plugin.recipes.ilwp import Ilwp, IlwpTraining

__all__ = ["TRAINED_STEP", "Parts"]

TRAINED_STEP = 2.2
"""Times the step that outputs bear without training is what a training with a rate makes up for."""


class Parts:
    """Recipes while a model trains.

    An adapter hooks `weight` into every weight of `keys`, adds `loss` to the loss, and tells epochs and steps.

    Args:
        config: IlwpConfig() if None.
        network: the model.
        sources: by key, where the weights that can be hooked are found outside a forward pass.
        example_inputs: see `compress`.
        references: see `compress`.
        calibration: inputs by which steps are chosen; without them steps are safe ones, or those of the configuration.
        resumed: whether a checkpoint will bring steps that may have been chosen so.
        to_the_end: whether `compressed` gets these inputs, too: norms may be coarse then, since biases make up for it.
        required: whether it is an error if `ilwp` finds no chain; it always is where no other recipe quantizes.

    Attributes:
        sources: see above.
        parts: of the recipes that have one.
        keys: of the weights to hook.
        left: why other weights are not quantized, by layer.
        rate_factor: multiplies the rates of all recipes: what steers the size.

    Raises:
        ChainError, ConfigError: see `compress`.
    """

    def __init__(
        self,
        config: IlwpConfig,
        network: Network,
        sources: Mapping[str, WeightSource],
        *,
        example_inputs: Any = None,
        references: Mapping[str, Any] | None = None,
        calibration: CalibrationInputs | None = None,
        resumed: bool = False,
        to_the_end: bool = True,
        required: bool = False,
    ) -> None:
        own = config.ilwp()
        if own is not None and own.align:
            raise ConfigError(
                "align=True: the file would hold aligned weights, not those that the model trains with; align the "
                "model first, with ilwp_integrations.torch_pruning.align or training.fine_tune, then set align to False"
            )
        self.config, self.sources, self.rate_factor = config, sources, 1.0
        calibrated = calibration is not None or resumed
        self._to_the_end = to_the_end
        self._resolve(calibrated)
        alone = not any(recipe.quantizes() for recipe in self._recipes if not isinstance(recipe, Ilwp))
        self._request = Request(example_inputs, references or {}, required or alone, calibrated)
        plan = make_plan(network, self._recipes, self._request, calibration)
        self._claims, self.left = plan.claims, plan.left
        steps = plan.steps(coarser=TRAINED_STEP if config.rate > 0 else 1.0)
        self.parts: list[TrainingPart] = []
        self._by_recipe: list[TrainingPart | None] = []
        self._owner: dict[str, TrainingPart] = {}
        self._steps = steps
        for recipe, claims in zip(self._recipes, self._claims, strict=True):
            part = recipe.train(network, claims, sources, steps, self._request)
            self._by_recipe.append(part)
            if part is not None:
                self.parts.append(part)
                self._owner.update(dict.fromkeys(part.hooked, part))
        if self.ilwp is not None:
            self.ilwp.beside_others = self._quantizes_others()

    def _quantizes_others(self) -> bool:
        """Whether weights outside chains are quantized in training."""
        return any(
            part is not None and part.hooked and recipe.quantizes()
            for recipe, part in zip(self._recipes, self._by_recipe, strict=True)
            if not isinstance(recipe, Ilwp | BatchNorm)
        )

    def _resolve(self, calibrated: bool) -> None:
        """Settle what is left open in the options."""
        self._recipes: list[Recipe] = []
        for recipe in self.config.recipe_list():
            known = calibrated and (self._to_the_end or not isinstance(recipe, BatchNorm))
            self._recipes.append(recipe.resolved(known, trains=True))
            self._recipes[-1].check(known, trains=True)
        self._calibrated = calibrated

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the weights that the model is to compute with through `weight`."""
        return tuple(self._owner)

    @property
    def ilwp(self) -> IlwpTraining | None:
        """The part of the recipe `ilwp`, which has the inter-layer loss; None where it has none."""
        return next((part for part in self.parts if isinstance(part, IlwpTraining)), None)

    @property
    def enabled(self) -> bool:
        """Whether weights are what the file will restore; False passes them through."""
        return all(part.enabled for part in self.parts)

    @enabled.setter
    def enabled(self, value: bool) -> None:
        for part in self.parts:
            part.enabled = value

    @property
    def loss_factor(self) -> float:
        """Of a schedule; multiplies the losses of all recipes."""
        return self.parts[0].loss_factor if self.parts else 1.0

    @loss_factor.setter
    def loss_factor(self, value: float) -> None:
        for part in self.parts:
            part.loss_factor = value

    def weight(self, key: str, weight: Tensor) -> Tensor:
        """What the model computes with."""
        return self._owner[key].weight(key, weight)

    def reconstructed(self) -> dict[str, Tensor]:
        """By key, what the file restores the hooked weights to as they are now."""
        return {key: value for part in self.parts for key, value in part.reconstructed().items()}

    def loss(self) -> Tensor:
        """The losses of all recipes, weighted, and their rates; a scalar."""
        losses = [loss for part in self.parts if (loss := part.loss()) is not None]
        losses += self._rates()
        return torch.stack([loss.float() for loss in losses]).sum() if losses else torch.zeros(())

    def _rates(self) -> Iterator[Tensor]:
        """What the codes cost, weighted. A bit costs the same wherever it is."""
        if not self.has_rate or not self.rate_factor or not self.loss_factor:
            return
        levels = [part.levels() if part.rate else {} for part in self.parts]
        total = sum(own.numel() for found in levels for own in found.values())
        for part, found in zip(self.parts, levels, strict=True):
            if found:
                yield part.rate * part.loss_factor * self.rate_factor / total * part.codes.bits(found)

    @property
    def has_rate(self) -> bool:
        """Whether a recipe has a rate term."""
        return any(part.rate for part in self.parts)

    @torch.no_grad()
    def code_bits(self) -> tuple[float, int]:
        """Bits of all codes that the rate can be taken of, by their histograms, and how many codes there are."""
        levels = [own for part in self.parts for own in part.levels().values() if own.numel()]
        return sum(map(entropy_bits, levels)), sum(own.numel() for own in levels)

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer has to train besides the model."""
        return [parameter for part in self.parts for parameter in part.parameters()]

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins, counted from 0."""
        for part in self.parts:
            part.begin_epoch(epoch)

    def after_step(self) -> None:
        """The optimizer has made a step."""
        for part in self.parts:
            part.after_step()

    def finish(self) -> None:
        """Training is over: from now on the model computes with what the file restores."""
        for part in self.parts:
            part.finish()

    def statistics(self) -> dict[str, float]:
        """Numbers of all recipes."""
        numbers = {name: value for part in self.parts for name, value in part.statistics().items()}
        bits, codes = self.code_bits() if self.has_rate else (0.0, 0)
        return {**numbers, "bits per weight": bits / codes} if codes else numbers

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "parts": [part.state() for part in self.parts],
            "steps": dict(self._steps),
            "calibrated": self._calibrated,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._steps = dict(state["steps"])
        self._resolve(bool(state["calibrated"]))
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state(own)

    def compressed(
        self,
        model: Model,
        *,
        quantized: Mapping[str, IntegerTensor] | None = None,
        calibration: CalibrationInputs | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> CompressedModel:
        """The file that restores what the model computes with.

        Args:
            model: the trained model without hooks, or its state dict: raw weights, not what they are restored to.
            quantized: weights that a toolkit has quantized, see `compress`.
            calibration: inputs for norms and biases to follow what is rounded; the codes stay as they were trained.
            metadata: see `compress`.
        """
        steps = {**self._steps, **{key: step for part in self.parts for key, step in part.encoding_steps().items()}}
        network = network_of(model)
        if calibration is not None and network.module is not None:
            # Raw weights have been trained to be rounded: what they compute as they are means nothing.
            baked = copy.deepcopy(network.module)
            with torch.no_grad():
                for key, value in self.reconstructed().items():
                    baked.get_parameter(key).copy_(value)
            network = replace(network, module=baked)
        recipes = [
            (None if part is None else part.encoder()) or recipe
            for recipe, part in zip(self._recipes, self._by_recipe, strict=True)
        ]
        return trained_file(
            network,
            recipes,
            self._claims,
            steps,
            self._request,
            quantized,
            metadata,
            self.left,
            calibration,
        )
