"""Layers in the shapes that pruning has left."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ilwp_plugin.errors import TensorError

__all__ = ["resize_layers"]

Shape = tuple[int, ...]


def _resize_convolution(module: nn.Module, weight: Shape) -> dict[str, int]:
    assert isinstance(module, nn.modules.conv._ConvNd)
    groups = module.groups
    transposed = module.transposed
    depthwise = groups == module.in_channels > 1
    if depthwise:
        multiplier = module.out_channels // groups
        groups = weight[0] if transposed else weight[0] // multiplier
    inputs, outputs = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    if inputs % groups or outputs % groups:
        raise ValueError(f"{inputs} inputs and {outputs} outputs in {groups} groups")
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


_RULES: tuple[tuple[type[nn.Module], Callable[[nn.Module, Shape], dict[str, object]]], ...] = (
    (nn.modules.conv._ConvNd, lambda m, w: dict(_resize_convolution(m, w))),
    (nn.Linear, lambda m, w: {"out_features": w[0], "in_features": w[1]}),
    (nn.modules.batchnorm._NormBase, lambda m, w: {"num_features": w[0]}),
    (nn.LayerNorm, lambda m, w: {"normalized_shape": w}),
    (nn.GroupNorm, lambda m, w: {"num_channels": w[0]}),
    (nn.PReLU, lambda m, w: {"num_parameters": w[0]}),
    (nn.Embedding, lambda m, w: {"num_embeddings": w[0], "embedding_dim": w[1]}),
)
"""How the attributes of a layer follow from the shape of its weight."""

_OF_LAYERS = frozenset(("weight", "bias", "running_mean", "running_var"))
"""Whose shapes a module of an unknown kind is likely to hold as numbers, too."""


def resize_layers(model: nn.Module, shapes: Mapping[str, Shape]) -> None:
    """Give the parameters and buffers of a model other shapes, and its layers the attributes that belong to them.

    The values of what is resized are not defined afterwards. Code of the model that has channel numbers of its own (a
    `view` to a fixed width) is not changed.

    Args:
        model: is changed in place.
        shapes: by name in the state dict; names that the model lacks are passed over.

    Raises:
        TensorError: a layer of a kind that is not known has to be resized, or a shape does not fit its layer; the model
            is as it was.
    """
    changes: list[tuple[nn.Module, dict[str, Tensor], dict[str, object]]] = []
    seen: dict[int, Tensor] = {}  # a tensor that two layers share stays shared
    for name, module in model.named_modules():
        own = {**module._parameters, **module._buffers}
        resized: dict[str, Tensor] = {}
        for local, tensor in own.items():
            key = f"{name}.{local}" if name else local
            if tensor is not None and key in shapes and tuple(tensor.shape) != tuple(shapes[key]):
                if tensor.dim() != len(shapes[key]):
                    raise TensorError(f"{key!r}: expected {tensor.dim()} dimensions, the file has {shapes[key]}")
                resized[local] = seen.setdefault(id(tensor), _empty(tensor, shapes[key]))
        if not resized:
            continue
        rule = next((rule for kind, rule in _RULES if isinstance(module, kind)), None)
        if rule is None and not set(resized) & _OF_LAYERS:  # parameters outside layers, as layer scales are
            changes.append((module, resized, {}))
            continue
        if rule is None or parametrize.is_parametrized(module):
            raise TensorError(
                f"layer {name!r}: {type(module).__name__} cannot be resized; build the model with the shapes of the "
                f"file ({', '.join(f'{local}: {tuple(t.shape)}' for local, t in resized.items())}) and use apply_to"
            )
        sized = resized.get("weight", resized.get("running_mean", own.get("weight")))
        assert sized is not None
        try:
            attributes = rule(module, tuple(sized.shape))
        except (ValueError, ZeroDivisionError, IndexError) as error:
            raise TensorError(f"layer {name!r}: a weight of shape {tuple(sized.shape)} does not fit: {error}") from None
        changes.append((module, resized, attributes))
    for module, resized, attributes in changes:
        for local, tensor in resized.items():
            (module._parameters if local in module._parameters else module._buffers)[local] = tensor  # type: ignore[assignment]
        for attribute, value in attributes.items():
            setattr(module, attribute, value)


def _empty(tensor: Tensor, shape: Shape) -> Tensor:
    fresh = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    return nn.Parameter(fresh, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fresh
