"""All recipes of a configuration in one training; the same for our own loops and for every toolkit's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.torch_network import Model, network_of
from ilwp_plugin.pipeline.compress import trained_file
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.pipeline.plan import choose_steps, claim_all
from ilwp_plugin.recipes.base import Claims, Recipe, Request, TrainingPart, WeightSource

__all__ = ["Parts"]


class Parts:
    """Recipes while a model trains.

    An adapter hooks `weight` into every weight of `keys`, adds `loss` to the loss, and tells epochs and steps.

    Args:
        config: IlwpConfig() if None.
        network: the model.
        sources: by key, where the weights that can be hooked are found outside a forward pass.
        example_inputs: see `compress`.
        references: see `compress`.
        required: whether it is an error if `ilwp` finds no chain.

    Attributes:
        sources: see above.
        parts: of the recipes that have one.
        keys: of the weights to hook.
        left: why other weights are not quantized, by layer.

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
        required: bool = False,
    ) -> None:
        own = config.ilwp()
        if own is not None and own.align:
            raise ConfigError(
                "align=True: the file would hold aligned weights, not those that the model trains with; align the "
                "model first, with ilwp_integrations.torch_pruning.align or training.fine_tune, then set align to False"
            )
        self.config, self.sources = config, sources
        self._recipes: list[Recipe] = [recipe.resolved(False) for recipe in config.recipe_list()]
        self._request = Request(example_inputs, references or {}, required)
        self._claims: list[Claims]
        self._claims, self.left = claim_all(network, self._recipes, self._request)
        steps = choose_steps(network, self._recipes, self._claims)
        self.parts: list[TrainingPart] = []
        self._owner: dict[str, TrainingPart] = {}
        self._steps = steps
        for recipe, claims in zip(self._recipes, self._claims, strict=True):
            part = recipe.train(network, claims, sources, steps, self._request)
            if part is not None:
                self.parts.append(part)
                self._owner.update(dict.fromkeys(part.hooked, part))

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the weights that the model is to compute with through `weight`."""
        return tuple(self._owner)

    @property
    def enabled(self) -> bool:
        """Whether weights are what the file will restore; False passes them through."""
        return all(part.enabled for part in self.parts)

    @enabled.setter
    def enabled(self, value: bool) -> None:
        for part in self.parts:
            part.enabled = value

    def weight(self, key: str, weight: Tensor) -> Tensor:
        """What the model computes with."""
        return self._owner[key].weight(key, weight)

    def reconstructed(self) -> dict[str, Tensor]:
        """By key, what the file restores the hooked weights to as they are now."""
        return {key: value for part in self.parts for key, value in part.reconstructed().items()}

    def loss(self) -> Tensor:
        """The losses of all recipes, weighted; a scalar."""
        losses = [loss for part in self.parts if (loss := part.loss()) is not None]
        return torch.stack([loss.float() for loss in losses]).sum() if losses else torch.zeros(())

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

    def statistics(self) -> dict[str, float]:
        """Numbers of all recipes."""
        return {name: value for part in self.parts for name, value in part.statistics().items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"parts": [part.state() for part in self.parts], "steps": dict(self._steps)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._steps = dict(state["steps"])
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state(own)

    def compressed(
        self,
        model: Model,
        *,
        quantized: Mapping[str, IntegerTensor] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> CompressedModel:
        """The file that restores what the model computes with.

        Args:
            model: the trained model without hooks, or its state dict: raw weights, not what they are restored to.
            quantized: weights that a toolkit has quantized, see `compress`.
            metadata: see `compress`.
        """
        steps = {**self._steps, **{key: step for part in self.parts for key, step in part.encoding_steps().items()}}
        return trained_file(
            network_of(model), self._recipes, self._claims, steps, self._request, quantized, metadata, self.left
        )
