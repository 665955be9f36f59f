"""Sizes under many configurations that differ in how chains are stored, without doing everything else again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.format import container
from ilwp_plugin.format.sections import ChainSection
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.torch_network import Model, network_of
from ilwp_plugin.pipeline.compress import compress
from ilwp_plugin.pipeline.plan import Progress, make_plan
from ilwp_plugin.pipeline.quantize import quantize
from ilwp_plugin.recipes.base import Request
from ilwp_plugin.recipes.ilwp import Ilwp

__all__ = ["estimates"]


def estimates(
    model: Model | Network,
    config: IlwpConfig,
    choices: Sequence[tuple[str, int]],
    progress: Progress | None = None,
) -> Iterator[Ledger]:
    """The exact ledger of the file under each of several modes and bits of its chains.

    Args:
        model: a module, or a state dict.
        config: everything else.
        choices: mode and bits, one after the other.
        progress: is told the layer, how many kernels of a file are done, and of how many.

    Raises:
        ConfigError: the recipe `ilwp` is not among those of the configuration.
        ChainError, TensorError: as `compress`.
    """
    if config.ilwp() is None:
        raise ConfigError("recipes: there is none of chains, whose modes and bits could be compared")
    network = network_of(model)
    first, encoded = None, list[container.SectionBytes]()
    for mode, bits in choices:
        changed = config.replace(mode=mode, bits=bits)
        if first is None:
            first = compress(network, changed, progress=progress)
            encoded = [section.encode(first.tensors) for section in first.sections]
            yield first.ledger
            continue
        own = [recipe for recipe in changed.recipe_list() if isinstance(recipe, Ilwp)]
        plan = make_plan(network, [recipe.resolved(False) for recipe in own], Request(), None, None)
        chains = iter([section.encode(first.tensors) for section in quantize(plan, None, None, progress).sections])
        yield container.measure(
            first.tensors,
            [
                next(chains) if isinstance(section, ChainSection) else other
                for section, other in zip(first.sections, encoded, strict=True)
            ],
        )
