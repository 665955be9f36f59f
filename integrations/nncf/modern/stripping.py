"""From a model with function hooks to the stripped one, and to the plain network that it comes from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from nncf.torch.function_hook.hook_storage import decode_hook_name
from nncf.torch.function_hook.wrapper import ATR_HOOK_STORAGE, get_hook_storage, is_wrapped
from nncf.torch.quantization.layers import BaseQuantizer
from nncf.torch.quantization.strip import convert_to_torch_fakequantizer
from torch import Tensor, nn

from ilwp_plugin.errors import TrainingError
from ilwp_plugin.training import Session

from ..network import WrappedNetwork
from ..saving import Stripped, finish
from .hooks import mask_hooks, parameter_hooks, weight_hooks, weight_quantizers

__all__ = [
    "MASKED_BEFORE",
    "SESSION",
    "network_of_model",
    "remember_weights",
    "strip",
    "stripped",
    "unwrapped",
    "with_sites",
]

SESSION = "_ilwp_session"
"""Attribute of a model: its session."""
MASKED_BEFORE = "_ilwp_masked_before"
"""Attribute of a model: the weights that had masks when ilwp was applied."""
_WEIGHTS = "_ilwp_weight_quantizers"
"""Attribute of a stripped model: paths of the quantizers of weights, by key."""


@torch.no_grad()
def strip(model: nn.Module, example: Any = None) -> nn.Module:
    """Leave the plain model, exactly as the file restores it: masks baked in, quantizers as those of torch.

    Args:
        model: the model, changed in place; one that is stripped already stays as it is.
        example: an input, by which the weights of quantizers on functions without a module are found.

    Returns:
        The model.

    Raises:
        TrainingError: a mask or a quantizer has been put behind ilwp's hook.
    """
    if not is_wrapped(model) or hasattr(model, _WEIGHTS):
        return model
    session: Session | None = getattr(model, SESSION, None)
    expected: Mapping[str, Tensor] = {}
    sites: dict[str, Mapping[str, int]] = {}
    storage = get_hook_storage(model)
    if session is not None:
        _check_order(model, session)
        expected = session.parts.reconstructed() if session.quantizes else {}
        for name, hook in weight_hooks(model).items():
            sites[hook.key] = hook.sites
            storage.delete_hook(name)
    for name, parameter, mask in list(mask_hooks(model)):
        training, mask.training = mask.training, False
        model.get_parameter(parameter).data = mask(model.get_parameter(parameter).data)
        mask.training = training
        storage.delete_hook(name)
    weights = weight_quantizers(model, example)
    keys = {names[0]: key for key, names in weights.items()}
    for name, quantizer in list(storage.named_hooks()):
        if isinstance(quantizer, BaseQuantizer):
            if name in keys:
                weight = model.get_parameter(keys[name])
                weight.data = _quantized(weight.data, quantizer)
            storage.set_submodule(name, convert_to_torch_fakequantizer(quantizer))
    remember_weights(model, {key: f"{ATR_HOOK_STORAGE}.{names[0]}" for key, names in weights.items()})

    finish(with_sites(model, sites), session, expected)
    return model


def with_sites(model: nn.Module, sites: Mapping[str, Mapping[str, int]]) -> Stripped:
    """What `strip` has left, with places where quantizers of ilwp's weights may be put; see `Stripped.sites`."""
    storage = get_hook_storage(model)
    keys = {site: key for key, names in sites.items() for site in names}

    def put(site: str, made: nn.Module) -> str:
        storage.insert_hook_by_name(site, made)
        path = f"{ATR_HOOK_STORAGE}.{site}"
        remember_weights(model, {**getattr(model, _WEIGHTS), keys[site]: path})
        return path

    return replace(stripped(model), sites=sites, put=put)


def _quantized(weight: Tensor, quantizer: BaseQuantizer) -> Tensor:
    """NNCF's own values: torch's formula rounds ties in another way, and would move a weight."""
    if quantizer.is_half_range or quantizer.narrow_range:
        low, high = quantizer.get_input_low_input_high()
        weight = torch.min(torch.max(weight, low), high)
    quantized: Tensor = quantizer.quantize(weight, execute_traced_op_as_identity=False).detach()
    return quantized


def stripped(model: nn.Module) -> Stripped:
    """What `strip` has left."""
    return Stripped(model, network_of_model(model), getattr(model, _WEIGHTS, {}))


def remember_weights(model: nn.Module, weights: Mapping[str, str]) -> None:
    """Let a model count as stripped; `weights` are the paths of the quantizers of weights, by key."""
    setattr(model, _WEIGHTS, dict(weights))


def unwrapped(model: nn.Module) -> nn.Module:
    """The plain network inside a copy of a model, without any hooks."""
    plain = copy.deepcopy(model)
    for name in ("forward", "_replicate_for_data_parallel", SESSION, MASKED_BEFORE, _WEIGHTS):
        plain.__dict__.pop(name, None)
    plain._modules.pop(ATR_HOOK_STORAGE, None)
    return plain


def network_of_model(model: nn.Module) -> WrappedNetwork:
    """A model as recipes see it."""
    return WrappedNetwork.of_model(model, foreign=(ATR_HOOK_STORAGE,))


def _check_order(model: nn.Module, session: Session) -> None:
    """Raises TrainingError where NNCF does something to a layer behind ilwp, which would undo its grid."""
    later = {parameter for _, parameter, _ in mask_hooks(model)} - getattr(model, MASKED_BEFORE, set())
    if later:
        raise TrainingError(
            f"nncf.prune has put masks on {len(later)} weights behind ilwp, such as {min(later)!r}, and may have left "
            "out ilwp's layers; apply it before ilwp"
        )
    operations = {name: hook for name, hook in get_hook_storage(model).named_hooks() if name.startswith("pre_hooks")}
    own = list(weight_hooks(model).values())
    for key in session.parts.keys:
        layer = key.removesuffix(".weight")
        hooks = [hook for _, hook in parameter_hooks(model, key)]
        if [hook in own for hook in hooks] != [False] * (len(hooks) - 1) + [True]:
            raise TrainingError(
                f"layer {layer!r}: expected ilwp's hook once and last on its weight, got "
                f"{[type(hook).__name__ for hook in hooks]}; apply nncf.prune and nncf.quantize before ilwp"
            )
        for name in operations:
            operation, port = decode_hook_name(name)[1:]
            if port == 1 and operation.startswith(layer.replace(".", "/") + "/"):
                raise TrainingError(
                    f"layer {layer!r}: nncf.quantize has put a quantizer behind ilwp's ({name}); apply it before "
                    "ilwp, which then takes that quantizer off"
                )
