"""The inter-layer loss as a module to add to any training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.method.provenance import Provenance
from ilwp_plugin.models.chains import Chains, unwrap
from ilwp_plugin.recipes.ilwp import IlwpTraining, chains_of
from ilwp_plugin.recipes.loss_weight import TrainingRun
from ilwp_plugin.training.fake_quantization import FakeQuantization

__all__ = ["InterLayerLoss"]


class _TrainedWeight:
    """A convolution's weight as it trains: behind our own quantizer the raw one."""

    pruned = False

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def weight(self) -> Tensor:
        module = self._module
        if parametrize.is_parametrized(module, "weight"):
            behind = module.parametrizations.weight  # type: ignore[union-attr]
            if len(behind) == 1 and isinstance(behind[0], FakeQuantization):  # type: ignore[arg-type,index]
                raw: Tensor = behind.original  # type: ignore[union-attr,assignment]
                return raw
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight


class InterLayerLoss(nn.Module):
    """`loss_weight * L_inter` of a model's chains (equations 2 and 3 of the paper).

    Calling it takes no arguments and returns a float32 scalar with gradient to the weights:

        regularizer = InterLayerLoss(model, config, run=TrainingRun.of(optimizer, steps, scheduler))
        loss = criterion(model(x), y) + regularizer()

    The loss is always that of the collocated kernels, whatever the mode of the configuration, since it is what makes
    them predict each other. The weights are those of the model at each call, behind a `FakeQuantizer` the raw
    ones; they are not parameters of this module.
    Under DistributedDataParallel every rank adds the same term, and averaging leaves it as it is.

    Args:
        model: the model; wrappers are looked through.
        config: IlwpConfig() if None; `bits` plays no part.
        run: the training to come; needed where `config.loss_weight` is "auto" (see `recipes.loss_weight`). A model
            that is trained already is pulled less far.
        example_inputs: see `compress`.
        references: index maps or origins by layer name, see `compress`.

    Attributes:
        loss_weight: may be changed at any time, by a schedule for example.
        chains: the layers that take part.
        predicted_weights: Z.

    Raises:
        ChainError: the model has no chain.
        ConfigError: the configuration has no recipe `ilwp`.
        TrainingError: an automatic weight without `run`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: IlwpConfig | Mapping[str, Any] | None = None,
        *,
        run: TrainingRun | None = None,
        example_inputs: Any = None,
        references: Mapping[str, Tensor] | Provenance | None = None,
    ) -> None:
        super().__init__()
        options = IlwpConfig.of(config).ilwp()
        if options is None:
            raise ConfigError("recipes: the inter-layer loss belongs to the recipe 'ilwp', which is not among them")
        model = unwrap(model)
        self.chains: Chains = chains_of(model, options, example_inputs=example_inputs)
        modules = {key: model.get_submodule(key.removesuffix(".weight")) for chain in self.chains for key in chain.keys}
        sources = {key: _TrainedWeight(module) for key, module in modules.items()}
        # Behind an attribute that is no module: the model's parameters must not become this module's too.
        self._part = IlwpTraining(options, self.chains, False, sources, {}, references)
        self.predicted_weights = self._part.predicted_weights
        self._part.choose_loss_weight(
            run,
            model,
            "loss_weight='auto' scales the weight to the length of the training: pass "
            "run=TrainingRun.of(optimizer, steps, scheduler), or set loss_weight to a number",
        )
        self.loss_weight = self._part.loss_weight

    def value(self) -> Tensor:
        """The loss itself, without its weight: the mean |residual| of the predicted weights."""
        return self._part.inter_layer_loss()

    def forward(self) -> Tensor:
        """The weighted loss: a float32 scalar with gradient to all layers of the chains. It takes no inputs."""
        if self.loss_weight == 0:
            return torch.zeros((), device=next(iter(self._part.sources.values())).weight().device)
        return self.loss_weight * self.value()

    def extra_repr(self) -> str:
        """What `print` shows."""
        layers = sum(len(chain.layers) for chain in self.chains)
        return f"loss_weight={self.loss_weight:.4g}, layers={layers}, predicted_weights={self.predicted_weights}"
