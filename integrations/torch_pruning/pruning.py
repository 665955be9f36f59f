"""Pruning that keeps inter-layer prediction meaningful: who survived, what a channel costs, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import ConfigError, IlwpError, TensorError
from ilwp_plugin.method.loss import channel_costs
from ilwp_plugin.method.provenance import Origin, ancestral_references, family_scores
from ilwp_plugin.models.chains import Chain, unwrap
from ilwp_plugin.recipes.ilwp import chains_of
from ilwp_plugin.training import InterLayerLoss

from .coupling import FAULTS

__all__ = ["IlwpImportance", "IlwpPruner", "ProvenanceTracker"]

_LEAST_COST = 0.1
"""Relative; a channel that costs nothing is not worth infinitely much."""

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


class ProvenanceTracker:
    """Which channels of the original network are left, through any number of pruning steps.

        tracker = ProvenanceTracker(model)
        for group in pruner.step(interactive=True):
            tracker.prune(group)
        compress(model, config, references=tracker.provenance).save("pruned.ilwp")

    `IlwpPruner` does that for you.

    Args:
        model: before any pruning.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        self._origins = {name: Origin.whole(_channels(m)) for name, m in _layers(self._model)}

    def prune(self, group: Any) -> None:
        """Prune a group of torch-pruning's, and remember what went.

        Raises:
            TensorError: the group would take all channels of a layer; nothing is pruned.
        """
        self._origins = self._after(group)
        group.prune()

    def _after(self, group: Any) -> dict[str, Origin]:
        names = {id(module): name for name, module in _layers(self._model)}
        pruned: dict[str, set[int]] = {}
        for item in group:
            module = item.dep.target.module
            if id(module) in names and _makes_channels(item):
                pruned.setdefault(names[id(module)], set()).update(item.idxs)
        try:
            return {n: o.without(sorted(pruned[n])) if n in pruned else o for n, o in self._origins.items()}
        except TensorError as error:
            raise TensorError(f"the group would take all channels of one of {sorted(pruned)}: {error}") from error

    @property
    def provenance(self) -> dict[str, Origin]:
        """The origin of the channels of every convolution and linear layer; for `compress(..., references=)`.

        Transposed convolutions are left out: a file keeps the origins of what is the first dimension of a weight.

        Raises:
            TensorError: the model was pruned behind the tracker's back.
        """
        for name, module in _layers(self._model):
            origin = self._origins.get(name)
            if origin is None or len(origin.survivors) != _channels(module):
                known = "none" if origin is None else len(origin.survivors)
                raise TensorError(
                    f"layer {name!r} has {_channels(module)} channels, the tracker knows of {known}; "
                    "prune each group with tracker.prune(group), or use IlwpPruner"
                )
        transposed = {name for name, module in _layers(self._model) if getattr(module, "transposed", False)}
        return {name: origin for name, origin in self._origins.items() if name not in transposed}


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _LAYERS)]


def _channels(module: nn.Module) -> int:
    return int(module.out_channels if isinstance(module, nn.modules.conv._ConvNd) else module.out_features)  # type: ignore[arg-type]


def _makes_channels(item: Any) -> bool:
    """Whether an item of a group is about the outputs of its layer (of a depthwise one inputs and outputs are one)."""
    module, handler = item.dep.target.module, item.dep.handler
    depthwise = isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels > 1
    return depthwise or "out_channels" in getattr(handler, "__name__", "")


class IlwpImportance:
    """Importance of channels for torch-pruning that prunes kernels together with those that they predict.

    The importance of a kernel in the first layer and of all that it predicts, directly and indirectly, is another
    importance, relative to the mean of each layer, averaged over them, and divided by the `strength`-th power of their
    mean |residual|, likewise (`family_scores`): families are pruned as a whole, so that survivors keep their
    references. A group without depthwise kernels keeps the other importance.

    Of a network trained with the loss, whose costs are low everywhere, they say little, and what they outweigh is
    missed: docs/alignment.md has measurements. So they are left out unless you ask for them.

    Families whose members are equally important come from `align(..., importance=)`; without it accuracy pays.

    Args:
        importance: any importance of torch-pruning's, that is, a callable from a group to one number for each channel.
        tracker: of the model, so that kernels keep their references while it is pruned.
        config: chooses the layers; IlwpConfig() if None.
        example_inputs: see `compress`.
        strength: of the costs; 0 leaves them out, with 1 a channel that costs twice as much is worth half.
    """

    def __init__(
        self,
        importance: Callable[..., Tensor | None],
        tracker: ProvenanceTracker,
        config: IlwpConfig | None = None,
        *,
        example_inputs: Any = None,
        strength: float = 0.0,
    ) -> None:
        self._importance, self._tracker, self._strength = importance, tracker, strength
        options = IlwpConfig.of(config).ilwp()
        if options is None:
            raise ConfigError("recipes: the importance is that of the recipe 'ilwp', which is not among them")
        if options.scope != "depthwise":
            raise ConfigError(
                f"scope: under {options.scope!r} kernels are slices of channels, and families of channels do not keep "
                "their references; prune by another importance, or take scope 'depthwise'"
            )
        self._chains = chains_of(tracker._model, options, example_inputs=example_inputs)

    def __call__(self, group: Any, **options: Any) -> Tensor | None:
        importance = self._importance(group, **options)
        if importance is None:
            return None
        layers = {
            id(self._tracker._model.get_submodule(layer)): (chain, number)
            for chain in self._chains
            for number, layer in enumerate(chain.layers)
        }
        total, found = torch.zeros_like(importance), 0
        for item in group:
            place = layers.get(id(item.dep.target.module))
            if place is None or not _makes_channels(item):
                continue
            chain, number = place
            scores = self._scores(chain, group._DG, options)[number].to(importance)
            roots = torch.as_tensor(list(item.root_idxs), device=importance.device)
            total.index_add_(0, roots, scores[torch.as_tensor(list(item.idxs), device=importance.device)])
            found += 1
        return importance if found == 0 else total / found

    @torch.no_grad()
    def _scores(self, chain: Chain, graph: Any, options: Mapping[str, Any]) -> Sequence[Tensor]:
        """(channels,) of each layer of a chain."""
        modules = [self._tracker._model.get_submodule(name) for name in chain.layers]
        kernels = [module.weight.flatten(1) for module in modules]  # type: ignore[operator]
        provenance = self._tracker.provenance
        references = ancestral_references([provenance[name] for name in chain.layers])
        costs = [torch.ones(len(kernels[0])), *channel_costs(kernels, references)]
        values = []
        for module, cost in zip(modules, costs, strict=True):
            everything = list(range(len(cost)))
            importance = None
            with suppress(*FAULTS):  # of the graph, on channel shuffles: these channels are in no group at all
                group = graph.get_pruning_group(module, tp.prune_depthwise_conv_out_channels, everything)
                importance = self._importance(group, **options)
            if importance is None:
                importance = torch.ones(len(cost))
            values.append(importance.to(cost) / importance.mean().clamp(min=1e-30))
        return [
            worth / cost.clamp(min=_LEAST_COST) ** self._strength
            for worth, cost in zip(family_scores(values, references), family_scores(costs, references), strict=True)
        ]


class IlwpPruner:
    """Any pruner of torch-pruning's, which also tracks provenance and trains with the inter-layer loss.

        tracker = ProvenanceTracker(model)
        importance = IlwpImportance(tp.importance.MagnitudeImportance(), tracker)
        pruner = IlwpPruner(tp.pruner.BasePruner(model, x, importance, pruning_ratio=0.3), tracker, loss_weight=20.0)
        ...
            loss.backward()
            pruner.regularize(model)
            optimizer.step()
        pruner.step()

    Everything else is the pruner's own.

    Args:
        pruner: the pruner.
        tracker: of the same model.
        config: chooses the layers and the weight of the loss, a number; IlwpConfig() if None.
        loss_weight: instead of the configuration's.
        example_inputs: see `compress`.
    """

    def __init__(
        self,
        pruner: Any,
        tracker: ProvenanceTracker,
        config: IlwpConfig | None = None,
        *,
        loss_weight: float | None = None,
        example_inputs: Any = None,
    ) -> None:
        config = IlwpConfig.of(config)
        self.pruner, self.tracker = pruner, tracker
        self._config = config if loss_weight is None else config.replace(loss_weight=loss_weight)
        self._example_inputs = example_inputs
        self._loss: InterLayerLoss | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "pruner":  # before __init__, as in a copy
            raise AttributeError(name)
        return getattr(self.pruner, name)

    @property
    def provenance(self) -> dict[str, Origin]:
        """See `ProvenanceTracker`."""
        return self.tracker.provenance

    def step(self, interactive: bool = False) -> Iterator[Any] | None:
        """As the pruner's own; groups that are yielded remember themselves when `prune` is called."""
        groups = self._tracked()
        if interactive:
            return groups
        for group in groups:
            group.prune()
        return None

    def _tracked(self) -> Iterator[Any]:
        groups = iter(self.pruner.step(interactive=True))
        while True:
            with self._explained():
                group = next(groups, None)
            if group is None:
                return
            group.prune = partial(self._prune, group, group.prune)
            yield group

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """torch-pruning's own faults say what they are of."""
        try:
            yield
        except IlwpError:
            raise
        except FAULTS as error:
            raise TensorError(
                f"torch-pruning cannot prune {type(self.tracker._model).__name__} ({type(error).__name__}: {error}); "
                "groups before this one are pruned already. It does not see through channel shuffles by `view`: make "
                "the pruner anew on a fresh model, with the layers before them in its `ignored_layers`"
            ) from error

    def _prune(self, group: Any, prune: Callable[[], None], *arguments: Any, **options: Any) -> None:
        if arguments or options:
            raise TensorError("group.prune() takes no channels here: what else is pruned could not be tracked")
        group.prune = prune
        with self._explained():
            self.tracker.prune(group)
        self._loss = None

    def regularize(self, model: nn.Module, *arguments: Any, **options: Any) -> Any:
        """Add the gradients of the pruner's own regularizer and of the inter-layer loss; call it after `backward`.

        Args:
            model: the model.
            arguments, options: of the pruner's own `regularize`.

        Raises:
            TrainingError: the loss weight is "auto"; here the length of the run is not known.
        """
        result = None
        if type(self.pruner).regularize is not tp.pruner.BasePruner.regularize:  # which does nothing, but wants a loss
            result = self.pruner.regularize(model, *arguments, **options)
        if self._loss is None:
            self._loss = InterLayerLoss(
                self.tracker._model,
                self._config,
                example_inputs=self._example_inputs,
                references=self.tracker.provenance,
            )
        term = self._loss()
        if term.requires_grad:
            term.backward()
        return result
