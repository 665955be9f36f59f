"""A model as recipes see it: its tensors, its layers, its norms, and the order in which they run.

Whatever holds a model (a torch module, a state dict, another package's graph) is told to recipes as a `Network`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ilwp_plugin.format.sections import Section
from ilwp_plugin.models.borrowing import copied
from ilwp_plugin.models.chains import Chains, Convolution, Scope, is_real, select_chains
from ilwp_plugin.models.loading import load_tensors

__all__ = ["NORM_ROLES", "FileState", "Layer", "Network", "Norm", "is_weight"]

NORM_ROLES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""The tensors of a batch norm in a state dict; the last one may be missing."""


@dataclass(frozen=True)
class Layer:
    """A weight of two dimensions or more, and what belongs to it.

    Attributes:
        name: of the layer, as scopes name it; of a tensor that is no layer's `weight`, its key.
        kind: what it is, in the words of its framework ("Conv2d", "Linear", "tensor", ...).
        weight: key of the weight in the state.
        bias: key of the bias; None where there is none.
        hooked: whether the weight can be replaced by another value while the model runs.
    """

    name: str
    kind: str
    weight: str
    bias: str | None = None
    hooked: bool = False


@dataclass(frozen=True)
class Norm:
    """A batch norm whose scale and shift are fixed at inference.

    Attributes:
        keys: its tensors in the state, in the order of NORM_ROLES; the last one may be missing.
        eps: of the module; None where it is not known.
    """

    keys: tuple[str, ...]
    eps: float | None


class FileState(dict[str, Tensor]):
    """A state dict whose tensors stay where they are, in a file, and as they are."""


@dataclass(frozen=True, eq=False)
class Network(ABC):
    """What recipes claim tensors of.

    Attributes:
        state: every tensor by key, in the order of the file.
        layers: by name, in the order of the state.
        norms: batch norms by name.
        module: the torch module, where there is one: it can be run, calibrated and trained.
        vectors: keys of the other parameters of one dimension: scales and shifts of layer and group norms, for example.
        rest: what the model is besides its tensors, as sections that go into its file.
        no_weight: why a tensor that looks like a weight is none, where it belongs to no layer.
        source_bytes: of the files that it was read from; None where it was in memory.
    """

    state: Mapping[str, Tensor]
    layers: Mapping[str, Layer]
    norms: Mapping[str, Norm]
    module: nn.Module | None = None
    vectors: tuple[str, ...] = ()
    rest: tuple[Section, ...] = ()
    no_weight: str = "a buffer or a mask, no parameter"
    source_bytes: int | None = None

    @abstractmethod
    def chains(
        self,
        *,
        scope: Scope,
        target_scopes: Sequence[str],
        ignored_scopes: Sequence[str],
        layers: Sequence[str] | None,
        example_inputs: Any,
        taken: Mapping[str, str],
        required: bool,
    ) -> Chains:
        """The layers that can predict each other; see `models.chains.find_chains`.

        Args:
            scope: "depthwise", or "conv" for all kernels larger than 1x1.
            target_scopes, ignored_scopes: patterns of names to take, and to leave.
            layers: names in order of prediction, where the caller gives it.
            example_inputs: for one pass that finds the order of execution, where the model can be run.
            taken: why layers cannot be in a chain, by name.
            required: whether it is an error that there is none.
        """

    def runnable(self) -> nn.Module | None:
        """A module that computes what the model computes, in which layers have the names that they have here.

        For calibration. None where there is nothing that could run; other packages' graphs make one when it is needed.
        """
        return self.module

    def input_shapes(self) -> dict[str, list[int | str]]:
        """By the name of an input the sizes of its dimensions, a word where any does; empty where they are unknown."""
        return {}

    def in_module(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the state as the layer of `runnable` has it: some have it transposed."""
        return weight

    def from_module(self, name: str, weight: Tensor) -> tuple[Tensor, bool]:
        """The inverse of `in_module`, and whether it transposes."""
        return weight, False

    def evaluated(self, state: Mapping[str, Tensor] | None) -> Any:
        """The model with other values, as `evaluate` gets it; None for its own."""
        assert self.module is not None
        restored = copied(self.module).eval()
        if state is not None:
            own = restored.state_dict()
            own.update(state)
            load_tensors(restored, own)
        return restored

    def callable_of(self, evaluated: Any) -> Callable[..., Any]:
        """What can be called with inputs as `runnable` can, of what `evaluated` has given."""
        called: Callable[..., Any] = evaluated
        return called

    @property
    def holders(self) -> dict[str, str]:
        """By key of a vector, the name of what holds it, as scopes name it."""
        return {key: key.rpartition(".")[0] or key for key in self.vectors}

    @property
    def scope_names(self) -> list[str]:
        """What scopes may name: layers, norms, and what holds vectors."""
        return [*self.layers, *self.norms, *dict.fromkeys(self.holders.values())]

    def layer_of(self, key: str) -> str:
        """The name of the layer whose weight or bias a key is; the key itself of any other tensor."""
        name, _, role = key.rpartition(".")
        return name if role in ("weight", "bias") and name in self.layers else key


@dataclass(frozen=True, eq=False)
class GraphNetwork(Network):
    """Of a graph of another package; layers stand in the order of its operations.

    Attributes:
        convolutions: what may be in chains, in the same order.
    """

    convolutions: tuple[Convolution, ...] = ()

    def chains(
        self,
        *,
        scope: Scope,
        target_scopes: Sequence[str],
        ignored_scopes: Sequence[str],
        layers: Sequence[str] | None,
        example_inputs: Any,
        taken: Mapping[str, str],
        required: bool,
    ) -> Chains:
        candidates = [
            Convolution(c.name, c.shape, c.depthwise, c.refusal or taken.get(c.name)) for c in self.convolutions
        ]
        if layers is not None:
            by_name = {candidate.name: candidate for candidate in candidates}
            candidates = [by_name[name] for name in layers if name in by_name]
        return select_chains(candidates, scope, target_scopes, ignored_scopes, required, self.scope_names)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's values are its own: not nested, and of no class that hands out others (fake, distributed)."""
    return not tensor.is_nested and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def is_weight(tensor: object) -> bool:
    """Whether a tensor is a weight in the sense of recipes: real, and two or more dimensions of more than one index."""
    return (
        isinstance(tensor, Tensor)
        and not is_lazy(tensor)
        and is_plain(tensor)
        and is_real(tensor)
        and sum(size > 1 for size in tensor.shape) >= 2
    )
