"""Networks of torch modules and of state dicts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ilwp_plugin.errors import TensorError
from ilwp_plugin.models.chains import Chains, find_chains, find_chains_by_name, is_real, unwrap
from ilwp_plugin.models.network import NORM_ROLES, Layer, Network, Norm, is_plain, is_weight

__all__ = ["Model", "ModuleNetwork", "StateNetwork", "is_batch_norm", "network_of"]

Model = nn.Module | Mapping[str, Tensor]

_HOOKED = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def network_of(model: Model | Network, *, eps: float | None = None) -> Network:
    """A model as recipes see it.

    Args:
        model: a module (wrappers are looked through), a state dict, whose order then stands for the execution order, or
            a network already.
        eps: of the batch norms of a state dict, which does not tell it.

    Raises:
        TensorError: it is none of these.
    """
    if isinstance(model, Network):
        return model
    if isinstance(model, nn.Module):
        return ModuleNetwork.of(model)
    if isinstance(model, Mapping):
        return StateNetwork.of(model, eps)
    raise TensorError(f"expected a torch.nn.Module or a state dict, got {type(model).__name__}")


class ModuleNetwork(Network):
    """Of a torch module."""

    @classmethod
    def of(cls, model: nn.Module) -> ModuleNetwork:
        """See `network_of`."""
        model = unwrap(model)
        state = model.state_dict()
        kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        hooked = {name for name, module in model.named_modules() if isinstance(module, _HOOKED)}
        layers = {
            layer.name: layer
            for layer in _layers(state, {name for name, _ in model.named_parameters(remove_duplicate=False)})
            for layer in [
                Layer(layer.name, kinds.get(layer.name, "tensor"), layer.weight, layer.bias, layer.name in hooked)
            ]
        }
        eps = {name: module.eps for name, module in model.named_modules() if is_batch_norm(module)}
        norms = _norms(state, eps)
        normed = tuple(f"{name}." for name, m in model.named_modules(remove_duplicate=False) if is_batch_norm(m))
        parameters = [  # a batch norm under a second name is one, too
            name for name, _ in model.named_parameters(remove_duplicate=False) if not name.startswith(normed)
        ]
        return cls(state, layers, norms, model, _vectors(state, parameters, layers, norms))

    def chains(self, **options: Any) -> Chains:
        assert self.module is not None
        return find_chains(self.module, others=self.scope_names, **options)


class StateNetwork(Network):
    """Of a state dict."""

    @classmethod
    def of(cls, state: Mapping[str, Tensor], eps: float | None) -> StateNetwork:
        """See `network_of`."""
        masks = {key for key in state if isinstance(key, str) and f"{key.removesuffix('_mask')}_orig" in state}
        layers = {layer.name: layer for layer in _layers(state, state.keys() - masks)}
        means = [key for key in state if isinstance(key, str) and key.endswith(".running_mean")]
        names = [name for name in (key.removesuffix(".running_mean") for key in means) if f"{name}.weight" in state]
        norms = _norms(state, dict.fromkeys(names, eps))
        return cls(state, layers, norms, vectors=_vectors(state, state.keys() - masks, layers, norms))

    def chains(self, *, example_inputs: Any = None, **options: Any) -> Chains:
        return find_chains_by_name(self.state, others=self.scope_names, **options)


def _layers(state: Mapping[str, Tensor], parameters: Collection[str]) -> Sequence[Layer]:
    """By the names of a state dict, of which some are parameters: a table or a mask in a buffer is no weight."""
    found = []
    for key, tensor in state.items():
        if not isinstance(key, str) or key not in parameters or not is_weight(tensor):
            continue
        place, dot, local = key.rpartition(".")
        own = f"{place}{dot}{local.replace('weight', 'bias')}"  # `bias_ih_l0` of recurrent layers, `in_proj_bias`
        bias = state.get(own) if own != key else None
        has_bias = isinstance(bias, Tensor) and is_real(bias) and bias.dim() == 1 and bias.numel() > 0
        found.append(Layer(key.removesuffix(".weight"), "tensor", key, own if has_bias else None))
    return found


def _vectors(
    state: Mapping[str, Tensor],
    parameters: Collection[str],
    layers: Mapping[str, Layer],
    norms: Mapping[str, Norm],
) -> tuple[str, ...]:
    """See `Network.vectors`. Only what is called a weight or a bias: of others, as the scales of a toolkit's quantizers
    and tables of frequencies, nobody knows how exact they have to be."""
    known = {layer.bias for layer in layers.values()} | {key for norm in norms.values() for key in norm.keys}
    return tuple(
        key
        for key, tensor in state.items()
        if key in parameters and key not in known and _is_vector(tensor) and _NAMED.search(str(key).rpartition(".")[2])
    )


_NAMED = re.compile("weight|bias")


def _is_vector(tensor: object) -> bool:
    return (
        isinstance(tensor, Tensor)
        and not is_lazy(tensor)
        and is_plain(tensor)
        and is_real(tensor)
        and (sum(size > 1 for size in tensor.shape) == 1 and 0 not in tensor.shape)
    )


def _norms(state: Mapping[str, Tensor], eps: Mapping[str, float | None]) -> dict[str, Norm]:
    norms: dict[str, Norm] = {}
    for name, value in eps.items():
        keys = [f"{name}.{role}" if name else role for role in NORM_ROLES]
        if keys[-1] not in state or state[keys[-1]].dtype != torch.int64:
            keys.pop()
        if all(key in state and is_real(state[key]) and state[key].numel() for key in keys[:4]):
            norms[name] = Norm(tuple(keys), value)
    return norms


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm whose scale and shift are its own and fixed at inference."""
    return isinstance(module, _BATCH_NORMS) and module.affine and module.track_running_stats
