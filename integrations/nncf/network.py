"""A model that NNCF has wrapped, as recipes see it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ilwp_plugin.models.chains import Chains
from ilwp_plugin.models.torch_network import ModuleNetwork, StateNetwork

__all__ = ["DescribedNetwork", "WrappedNetwork"]


@dataclass(frozen=True, eq=False)
class WrappedNetwork(ModuleNetwork):
    """Without the tensors that NNCF has put into it.

    Attributes:
        order: names of the convolutions in the order of NNCF's graph; None where the model is traced as ever.
    """

    order: tuple[str, ...] | None = None

    @classmethod
    def of_model(
        cls, model: nn.Module, *, foreign: Collection[str] = (), order: tuple[str, ...] | None = None
    ) -> WrappedNetwork:
        """Of a wrapped model.

        Args:
            model: the model.
            foreign: names of the modules and tensors that are NNCF's.
            order: see the class.
        """
        whole = ModuleNetwork.of(model)

        def own(key: str) -> bool:
            return not any(key == name or key.startswith(f"{name}.") for name in foreign)

        layers = {
            name: replace(layer, kind=layer.kind.removeprefix("NNCF"))
            for name, layer in whole.layers.items()
            if own(layer.weight)
        }
        state = {key: tensor for key, tensor in whole.state.items() if own(key)}
        vectors = tuple(filter(own, whole.vectors))
        return cls(state, layers, whole.norms, whole.module, vectors, order=order)

    def chains(self, **options: Any) -> Chains:
        if self.order is not None:
            options["layers"] = options["layers"] or self.order
        return super().chains(**options)


@dataclass(frozen=True, eq=False)
class DescribedNetwork(StateNetwork):
    """A model that is not there yet: of its weights the shapes are known, and which of its layers are in chains.

    Attributes:
        chained: names of the layers that predict each other, in order.
    """

    chained: tuple[str, ...] = ()

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], chained: Sequence[str]) -> DescribedNetwork:
        """Of tensors in the shapes of the weights."""
        known = StateNetwork.of(state, None)
        return cls(known.state, known.layers, known.norms, chained=tuple(chained))

    def chains(self, **options: Any) -> Chains:
        return super().chains(**{**options, "layers": self.chained}) if self.chained else Chains(())
