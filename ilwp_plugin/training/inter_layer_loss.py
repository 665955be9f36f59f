"""The inter-layer loss as a module to add to any training loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.method.loss import inter_layer_loss
from ilwp_plugin.method.provenance import Origin, Provenance, given_references
from ilwp_plugin.models.chains import Chains, unwrap
from ilwp_plugin.selection import chains_of
from ilwp_plugin.training.loss_weight import TrainingRun, automatic_loss_weight

__all__ = ["InterLayerLoss", "chain_modules"]

_log = logging.getLogger(__name__)


class FakeQuantization(nn.Module):
    """Base of parametrizations that quantize straight through: the loss looks behind them, at the weights that train.

    There it pulls every weight on towards its reference. Of quantized weights it would rest as soon as their difference
    is the code 0; that costs both bytes and accuracy (docs/alignment.md).
    """


def _trained_weight(module: nn.Conv2d) -> Tensor:
    if parametrize.is_parametrized(module, "weight"):
        behind = module.parametrizations.weight  # type: ignore[union-attr]
        if len(behind) == 1 and isinstance(behind[0], FakeQuantization):  # type: ignore[arg-type,index]
            raw: Tensor = behind.original  # type: ignore[union-attr,assignment]
            return raw
    return module.weight


def chain_modules(model: nn.Module, chains: Chains) -> list[list[nn.Conv2d]]:
    """The convolutions of each chain, in its order."""
    model = unwrap(model)
    modules = [[model.get_submodule(layer) for layer in chain.layers] for chain in chains]
    return [[module for module in chain if isinstance(module, nn.Conv2d)] for chain in modules]


def references_of(
    chains: Chains, modules: Sequence[Sequence[nn.Conv2d]], references: Mapping[str, Tensor] | Provenance
) -> list[list[Tensor | None]]:
    """Given references, checked, by chain and layer; see `method.provenance.given_references`."""
    if not any(isinstance(value, Origin) for value in references.values()):
        chains.check_predicted(references)
    return [
        given_references(chain.layers, [module.weight.numel() // chain.taps for module in members], references)
        for chain, members in zip(chains, modules, strict=True)
    ]


class InterLayerLoss(nn.Module):
    """`loss_weight * L_inter` of a model's chains (equations 2 and 3 of the paper).

    Calling it takes no arguments and returns a float32 scalar with gradient to the weights:

        regularizer = InterLayerLoss(model, config, run=TrainingRun.of(optimizer, steps, scheduler))
        loss = criterion(model(x), y) + regularizer()

    The loss is always that of the collocated kernels, whatever the mode of the configuration, since it is what makes
    them predict each other. The weights are those of the model at each call, behind a `ResidualFakeQuantizer` the raw
    ones; they are not parameters of this module.
    Under DistributedDataParallel every rank adds the same term, and averaging leaves it as it is.

    Args:
        model: the model; wrappers are looked through.
        config: IlwpConfig() if None; `bits` plays no part.
        run: the training to come; needed where `config.loss_weight` is "auto" (see `training.loss_weight`). A model
            that is trained already is pulled less far.
        example_inputs: see `compress`.
        references: index maps or origins by layer name, see `compress`.

    Attributes:
        loss_weight: may be changed at any time, by a schedule for example.
        chains: the layers that take part.
        predicted_weights: Z.

    Raises:
        ChainError: the model has no chain.
        TrainingError: an automatic weight without `run`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: IlwpConfig | None = None,
        *,
        run: TrainingRun | None = None,
        example_inputs: Any = None,
        references: Mapping[str, Tensor] | Provenance | None = None,
    ) -> None:
        super().__init__()
        config = IlwpConfig.of(config)
        self.chains = chains_of(unwrap(model), config, example_inputs=example_inputs)
        # A list, not a ModuleList: the model's parameters must not become this module's too.
        self._modules_by_chain = chain_modules(model, self.chains)
        self._references = references_of(self.chains, self._modules_by_chain, references) if references else None
        self.predicted_weights = self._count_predicted()
        self.loss_weight = self._choose_weight(config, None if run is None else run.for_network(unwrap(model)))

    def _count_predicted(self) -> int:
        total = 0
        for number, (chain, modules) in enumerate(zip(self.chains, self._modules_by_chain, strict=True)):
            for i, module in enumerate(modules[1:], start=1):
                index = None if self._references is None else self._references[number][i]
                total += module.weight.numel() if index is None else int((index >= 0).sum()) * chain.taps
        return total

    def _choose_weight(self, config: IlwpConfig, run: TrainingRun | None) -> float:
        if config.loss_weight != "auto":
            return config.loss_weight
        if run is None:
            raise TrainingError(
                "loss_weight='auto' scales the weight to the length of the training: pass "
                "run=TrainingRun.of(optimizer, steps, scheduler), or set loss_weight to a number"
            )
        with torch.no_grad():
            residual = float(self.value())
        weight = automatic_loss_weight(run, self.predicted_weights, residual)
        _log.info(
            "inter-layer loss weight %.4g (automatic: %d predicted weights, mean residual %.4g, reach of the run %.4g, "
            "pull %.3g)",
            weight,
            self.predicted_weights,
            residual,
            run.reach,
            run.pull,
        )
        return weight

    def value(self) -> Tensor:
        """The loss itself, without its weight: the mean |residual| of the predicted weights."""
        weights = [[_trained_weight(module) for module in chain] for chain in self._modules_by_chain]
        with torch.autocast(weights[0][0].device.type, enabled=False):
            return inter_layer_loss(weights, self._references)

    def forward(self) -> Tensor:
        if self.loss_weight == 0:
            return torch.zeros((), device=self._modules_by_chain[0][0].weight.device)
        return self.loss_weight * self.value()

    def extra_repr(self) -> str:
        layers = sum(len(chain.layers) for chain in self.chains)
        return f"loss_weight={self.loss_weight:.4g}, layers={layers}, predicted_weights={self.predicted_weights}"
