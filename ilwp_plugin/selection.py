"""Which tensors of a model are quantized how: chains, the grid, merged batch norms, those that a toolkit quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.encoder import BatchNormKeys
from ilwp_plugin.errors import ChainError, ConfigError, TensorError, nearest
from ilwp_plugin.method.grid import IntegerTensor
from ilwp_plugin.models.chains import (
    Chain,
    Chains,
    find_chains,
    find_chains_by_name,
    is_real,
    matcher,
    scope_matches,
    unwrap,
)
from ilwp_plugin.pipeline.calibration import is_batch_norm
from ilwp_plugin.sections import ROLES

__all__ = ["Model", "Selection", "batch_norms", "chains_of", "given_tensors", "layer_configs", "select_layers"]

Model = nn.Module | Mapping[str, Tensor]

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Selection:
    """What is quantized.

    Attributes:
        chains: layers that predict each other.
        grid: key of the weight, by name of the layer: convolutions and linear layers that go onto the grid.
        biases: key of the bias likewise.
    """

    chains: Chains
    grid: Mapping[str, str]
    biases: Mapping[str, str]


def chains_of(
    model: Model,
    config: IlwpConfig,
    *,
    example_inputs: Any = None,
    taken: Mapping[str, str] | None = None,
    required: bool = True,
) -> Chains:
    """The chains that a configuration finds in a module or a state dict; see `method.chains`."""
    options: dict[str, Any] = {
        "scope": config.scope,
        "target_scopes": config.target_scopes,
        "ignored_scopes": config.ignored_scopes,
        "layers": config.layers,
        "taken": taken,
        "required": required,
        "others": [] if config.weight_step is None else list(_layers(model)),
    }
    if isinstance(model, nn.Module):
        chains = find_chains(model, example_inputs=example_inputs, **options)
    elif isinstance(model, Mapping):
        chains = find_chains_by_name(model, **options)
    else:
        raise TensorError(f"expected a torch.nn.Module or a state dict, got {type(model).__name__}")
    layers = [layer for chain in chains for layer in chain.layers]
    for pattern in config.overrides:
        if not any(scope_matches(pattern, layer) for layer in layers):
            raise ChainError(f"`overrides`: {pattern!r} matches no layer of a chain; {nearest(pattern, layers)}")
    return chains


def layer_configs(chain: Chain, config: IlwpConfig) -> list[IlwpConfig]:
    """The configuration of each layer of a chain, overrides applied."""
    return [config.for_layer(layer) for layer in chain.layers]


def select_layers(
    model: Model, config: IlwpConfig, given: Mapping[str, IntegerTensor], example_inputs: Any
) -> Selection:
    """What a configuration quantizes in a model. Raises ChainError where that is nothing."""
    taken = {key.removesuffix(".weight"): "quantized already" for key in given}
    chains = Chains(())
    if config.bits is not None:
        required = config.weight_step is None and not given
        chains = chains_of(model, config, example_inputs=example_inputs, taken=taken, required=required)
    grid: dict[str, str] = {}
    biases: dict[str, str] = {}
    if config.weight_step is not None:
        layers = _layers(model)
        ignored = matcher(config.ignored_scopes, list(layers), "ignored_scopes", strict=False)
        targeted = matcher(config.target_scopes, list(layers), "target_scopes", strict=False)
        chained = {layer for chain in chains for layer in chain.layers}
        for name, (weight, bias) in layers.items():
            if ignored(name) or (config.target_scopes and not targeted(name)):
                continue
            if name not in chained and weight not in given:
                grid[name] = weight
            if bias is not None and config.batch_norm == "merged":
                biases[name] = bias
    return Selection(chains, grid, biases)


def _layers(model: Model) -> dict[str, tuple[str, str | None]]:
    """Convolutions and linear layers: keys of their weight and bias, by name."""
    found: dict[str, tuple[str, str | None]] = {}
    if isinstance(model, nn.Module):
        model = unwrap(model)
        state = model.state_dict()
        names = [name for name, module in model.named_modules() if isinstance(module, _LAYERS)]
    else:
        state = dict(model)
        names = [key.removesuffix(".weight") for key in state if isinstance(key, str) and key.endswith(".weight")]
    for name in names:
        weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        if isinstance(weight, Tensor) and is_real(weight) and weight.dim() >= 2 and weight.numel():
            has_bias = isinstance(bias, Tensor) and is_real(bias) and bias.numel()
            found[name] = (f"{name}.weight", f"{name}.bias" if has_bias else None)
    return found


def batch_norms(model: Model, config: IlwpConfig) -> dict[str, BatchNormKeys]:
    """The batch norms to merge, by name. Raises ConfigError where a state dict does not tell their eps."""
    if config.batch_norm == "exact":
        return {}
    found: dict[str, BatchNormKeys] = {}
    if isinstance(model, nn.Module):
        model = unwrap(model)
        state: Mapping[str, Tensor] = model.state_dict()
        eps = {name: module.eps for name, module in model.named_modules() if is_batch_norm(module)}
    else:
        state = model
        means = [key for key in state if isinstance(key, str) and key.endswith(".running_mean")]
        names = [name for name in (key.removesuffix(".running_mean") for key in means) if f"{name}.weight" in state]
        if names and config.batch_norm_eps is None:
            raise ConfigError(
                "batch_norm_eps: a state dict does not tell the eps of its batch norms, which merging needs; it is "
                "1e-5 in PyTorch's own modules"
            )
        eps = {name: float(config.batch_norm_eps or 0.0) for name in names}
    for name, value in eps.items():
        keys = [f"{name}.{role}" for role in ROLES]
        if keys[-1] not in state or state[keys[-1]].dtype != torch.int64:
            keys.pop()
        if all(key in state and is_real(state[key]) and state[key].numel() for key in keys[:4]):
            found[name] = BatchNormKeys(tuple(keys), value)
    return found


def given_tensors(quantized: Mapping[str, IntegerTensor], state: Mapping[str, Tensor]) -> dict[str, IntegerTensor]:
    """Given codes by key of their tensor, checked: they have to restore the tensor bit for bit.

    Raises:
        TensorError: an unknown tensor, or one that its codes do not restore.
    """
    given: dict[str, IntegerTensor] = {}
    for name, value in quantized.items():
        key = name if name in state else f"{name}.weight"
        if key not in state:
            raise TensorError(f"quantized: no tensor {name!r} in the state dict; {nearest(name, state)}")
        tensor = state[key].detach().cpu()
        if not is_real(tensor) or tensor.shape != value.codes.shape or not tensor.numel():
            raise TensorError(
                f"quantized: {name!r} is {tuple(tensor.shape)} {tensor.dtype}, its codes are {tuple(value.codes.shape)}"
            )
        restored = value.restore().to(tensor.dtype)
        if not torch.equal(restored, tensor):
            error = float((restored.double() - tensor.double()).abs().max())
            raise TensorError(
                f"quantized: {name!r} is not (codes - zero_point) * scale in float32: the largest difference is "
                f"{error:.3g}; set the tensor to what its codes restore to, or leave it out"
            )
        given[key] = value
    return given
