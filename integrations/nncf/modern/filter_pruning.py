"""NNCF 2's `filter_pruning` on NNCF 3, which has none: torch-pruning takes filters out before anything is hooked in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ilwp_plugin._imports import optional
from ilwp_plugin.errors import ConfigError, IlwpError, TensorError
from ilwp_plugin.models.chains import evaluating

from ..scopes import match
from .algorithms import Part, patterns_of

__all__ = ["FilterPruningPart", "prune_filters"]

_NORMS = {"L1": 1, "L2": 2}


class FilterPruningPart(Part):
    """Filters are gone from the beginning; what is left to do is to remember which.

    Args:
        history: torch-pruning's: layer, whether outputs were pruned, which channels.
        filters: of all convolutions, before and after.
    """

    name = "filter_pruning"

    def __init__(self, history: Sequence[Any], filters: tuple[int, int]) -> None:
        self.history, self._filters = list(history), filters

    def statistics(self) -> dict[str, Any]:
        before, after = self._filters
        return {"filters_before": before, "filters_after": after, "pruned": 1 - after / before}


def prune_filters(
    model: nn.Module, whole: Mapping[str, Any], section: Mapping[str, Any], example: Any, history: Sequence[Any] | None
) -> FilterPruningPart:
    """Take filters out of a model, in place and at once.

    Args:
        model: a float model without hooks.
        whole: the config.
        section: its `filter_pruning`. The share `pruning_target` of the filters of every layer goes, those with the
            least norm; NNCF 2 takes it off step by step during training.
        example: an input.
        history: of a checkpoint, whose filters are taken out instead.

    Raises:
        ConfigError: an option without counterpart.
        TensorError: torch-pruning cannot prune this model.
    """
    tp = optional("torch_pruning", "pruning")
    params = section.get("params", {})
    importance = params.get("filter_importance", "L2")
    first, last = _ends(model, example)
    ignored = [module for module in last if module is not None]
    if not params.get("prune_first_conv", False):
        ignored += first
    patterns, targets = patterns_of(whole, section)
    if targets:
        raise ConfigError("filter_pruning: target_scopes cannot be mapped to torch-pruning; use ignored_scopes")
    for pattern in patterns:
        named = [model.get_submodule(name) for name in match(pattern, model)]
        if not named:
            raise ConfigError(f"filter_pruning: ignored scope {pattern!r} names no module of the model")
        ignored += [module for module in named if isinstance(module, (nn.Conv2d, nn.Linear))]
    before = _filters(model)
    with evaluating(model):
        try:
            pruner = tp.pruner.BasePruner(
                model,
                example,
                importance=tp.importance.MagnitudeImportance(p=_NORMS[importance]),
                pruning_ratio=float(params.get("pruning_target", 0.5)),
                ignored_layers=ignored,
            )
            if history is None:
                pruner.step()
            else:
                pruner.load_pruning_history(history)
            model(*example)
        except IlwpError:
            raise
        except (IndexError, ValueError, RuntimeError, KeyError) as error:
            raise TensorError(
                f"torch-pruning cannot take filters out of {type(model).__name__} ({type(error).__name__}: {error}); "
                "name the layers in filter_pruning's ignored_scopes"
            ) from error
    return FilterPruningPart(pruner.pruning_history() if history is None else history, (before, _filters(model)))


def _filters(model: nn.Module) -> int:
    return sum(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def _ends(model: nn.Module, example: Sequence[Tensor]) -> tuple[list[nn.Module], list[nn.Module]]:
    """The first convolution, and the layers whose outputs are the model's: a classifier keeps its classes."""
    order: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: order.append(module))
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with evaluating(model):
        model(*example)
    for hook in hooks:
        hook.remove()
    linear: list[nn.Module] = [module for module in order if isinstance(module, nn.Linear)]
    return order[:1], linear[-1:] or order[-1:]
