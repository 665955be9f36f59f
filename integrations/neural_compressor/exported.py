"""The integers inside an exported model that INC has quantized (PT2E: quantize and dequantize nodes)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.models.tensors import integers_of, restored

__all__ = ["QuantizedWeight", "activations", "integer_weights", "other_tensors", "set_activations", "set_weight"]

_OPS = torch.ops.quantized_decomposed
_PER_CHANNEL = _OPS.quantize_per_channel.default
_PER_TENSOR = _OPS.quantize_per_tensor.default


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """One weight that the graph quantizes.

    Attributes:
        name: its key in the state dict of the graph module.
        nodes: quantize it; more than one where the module runs several times.
        value: codes, scales and zero points.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    value: IntegerTensor


def _nodes(graph: fx.GraphModule, target: Any) -> Iterator[fx.Node]:
    return (node for node in graph.graph.nodes if node.op == "call_function" and node.target is target)


def _source(node: fx.Node) -> str | None:
    """The key of the tensor that a node reads, where it reads one of the module's."""
    read = node.args[0]
    return str(read.target) if isinstance(read, fx.Node) and read.op == "get_attr" else None


def _get(graph: fx.GraphModule, key: str) -> Tensor:
    owner, _, name = key.rpartition(".")
    tensor = getattr(graph.get_submodule(owner), name)
    assert isinstance(tensor, Tensor)
    return tensor.detach()


@torch.no_grad()
def integer_weights(graph: fx.GraphModule) -> dict[str, QuantizedWeight]:
    """The weights that a graph quantizes, by their keys in its state dict, in order of execution."""
    found: dict[str, QuantizedWeight] = {}
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in (_PER_CHANNEL, _PER_TENSOR):
            continue
        name = _source(node)
        if name is None:
            continue
        if node.target is _PER_CHANNEL:
            _, scale, zero_point, axis, low, high, dtype = node.args
            scales, zeros = _get(graph, str(scale.target)), _get(graph, str(zero_point.target))
            codes = _PER_CHANNEL(_get(graph, name), scales, zeros, axis, low, high, dtype)
        else:
            _, scale, zero, low, high, dtype = node.args
            scales, zeros, axis = torch.tensor(scale), torch.tensor(zero), 0
            codes = _PER_TENSOR(_get(graph, name), scale, zero, low, high, dtype)
        value = integers_of(codes, scales, zeros if bool(zeros.any()) else None, axis)
        earlier = found.get(name)
        if earlier is not None and not _equal(earlier.value, value):
            raise TensorError(f"tensor {name!r} is quantized twice, in different ways")
        found[name] = QuantizedWeight(name, (node,) if earlier is None else (*earlier.nodes, node), value)
    return found


def _equal(a: IntegerTensor, b: IntegerTensor) -> bool:
    return a.axis == b.axis and np.array_equal(a.codes, b.codes) and np.array_equal(a.restore(), b.restore())


@torch.no_grad()
def set_weight(graph: fx.GraphModule, weight: QuantizedWeight, value: IntegerTensor) -> None:
    """Give a weight other codes and scales. Raises TensorError where they do not fit the node."""
    old = weight.value
    if value.codes.shape != old.codes.shape or value.scale.size not in (1, old.scale.size):
        raise TensorError(
            f"tensor {weight.name!r}: expected codes of shape {old.codes.shape} and {old.scale.size} scales, "
            f"got {value.codes.shape} and {value.scale.size}"
        )
    _get(graph, weight.name).copy_(restored(value))
    scale = torch.from_numpy(value.scale.copy())
    zero_point = torch.zeros(scale.shape) if value.zero_point is None else torch.from_numpy(value.zero_point.copy())
    for node in weight.nodes:
        if node.target is _PER_CHANNEL:
            _get(graph, str(node.args[1].target)).copy_(scale)  # type: ignore[union-attr]
            _get(graph, str(node.args[2].target)).copy_(zero_point)  # type: ignore[union-attr]
        else:
            _set_literals(node, float(scale), int(zero_point))


def activations(graph: fx.GraphModule) -> tuple[Tensor, Tensor]:
    """Scales (float64) and zero points (int64) of all activations that are quantized statically, in graph order."""
    nodes = [node for node in _nodes(graph, _PER_TENSOR) if _source(node) is None]
    return (
        torch.tensor([node.args[1] for node in nodes], dtype=torch.float64),
        torch.tensor([node.args[2] for node in nodes], dtype=torch.int64),
    )


def set_activations(graph: fx.GraphModule, scales: Tensor, zero_points: Tensor) -> None:
    """The inverse of `activations`. Raises TensorError where there are not as many."""
    nodes = [node for node in _nodes(graph, _PER_TENSOR) if _source(node) is None]
    if not len(nodes) == len(scales) == len(zero_points):
        raise TensorError(f"expected scales of {len(nodes)} activations, got {len(scales)}")
    for node, scale, zero_point in zip(nodes, scales.tolist(), zero_points.tolist(), strict=True):
        _set_literals(node, scale, zero_point)
    graph.recompile()


def _set_literals(node: fx.Node, scale: float, zero_point: int) -> None:
    for reader in (node, *(user for user in node.users if user.target is _OPS.dequantize_per_tensor.default)):
        reader.update_arg(1, scale)
        reader.update_arg(2, zero_point)


def other_tensors(graph: fx.GraphModule, weights: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    """The state dict without the weights that are quantized and their scales and zero points."""
    theirs = {
        str(argument.target)
        for weight in weights.values()
        for node in weight.nodes
        for argument in node.args
        if isinstance(argument, fx.Node)
    }
    return {name: tensor for name, tensor in graph.state_dict().items() if name not in theirs}
