"""An ONNX model as recipes see it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.format.sections.graph import GraphSection
from ilwp_plugin.models.chains import Chains, Convolution, Scope, is_real, select_chains
from ilwp_plugin.models.network import Layer, Network, Norm, is_weight
from ilwp_plugin.models.tensors import dtype_of, tensor_of

from .graph import key_in, load_model, take_out
from .layers import LayerNode, layers_of
from .rearrange import attribute_of, fold_norms, gather_values, graphs_of, is_fixed_norm, number_of_uses
from .session import KIND

__all__ = ["OnnxNetwork", "open_model"]


def open_model(source: str | os.PathLike[str] | ModelProto, config: Any = None) -> OnnxNetwork:
    """An ONNX model for `ilwp_plugin.compress`.

    Args:
        source: a file, or a model, which is not changed.
        config: of the compression: an IlwpConfig, its fields, or the name of a preset. Unless it says `batch_norm`
            "exact", batch norms are put into the layers that they follow.

    Raises:
        FileError: the file cannot be read, or is none.
    """
    if isinstance(source, ModelProto):
        model, size = ModelProto(), None
        model.CopyFrom(source)
    else:
        model, size = load_model(source)
    gather_values(model)
    if IlwpConfig.of(config).batch_norm != "exact":
        fold_norms(model)
    layers = layers_of(model.graph, {tensor.name: len(tensor.dims) for tensor in model.graph.initializer})
    taken = take_out(model, layers)
    return OnnxNetwork.of(model, taken, layers, size)


class OnnxNetwork(Network):
    """Of an ONNX model whose tensors were taken out; layers stand in the order of its nodes."""

    convolutions: Sequence[Convolution]

    @classmethod
    def of(
        cls,
        model: ModelProto,
        taken: Mapping[str, tuple[str, NDArray[Any]]],
        layers: Sequence[LayerNode],
        size: int | None = None,
    ) -> OnnxNetwork:
        """See `graph.take_out`."""
        state = {key: tensor_of(values, dtype_of(dtype)) for key, (dtype, values) in taken.items()}
        keys = {tensor.name: key for tensor in model.graph.initializer if (key := key_in(tensor)) is not None}
        uses = number_of_uses(model.graph)
        found: dict[str, Layer] = {}
        convolutions: list[Convolution] = []
        for layer in layers:
            key = keys.get(layer.weight)
            if key is None or not is_weight(state[key]):
                continue
            bias = keys.get(layer.bias) if layer.bias is not None else None
            own = bias if bias is not None and is_real(state[bias]) else None
            name = key.removesuffix(".weight")
            found[name] = Layer(name, layer.node.op_type, key, own)
            if layer.node.op_type == "Conv" and layer.direct:
                convolutions.append(_convolution(name, layer.node, state[key], uses[layer.weight] > 1))
        nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
        norms = {norm.keys[0]: norm for node in nodes if (norm := _norm(node, keys, state, uses)) is not None}
        graph = GraphSection(KIND, model.SerializeToString(deterministic=True))
        why = "a constant of an operation without weights"
        network = cls(state, found, norms, rest=(graph,), no_weight=why, source_bytes=size)
        object.__setattr__(network, "convolutions", tuple(convolutions))
        return network

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
        return select_chains(candidates, scope, target_scopes, ignored_scopes, required, list(self.layers))


def _convolution(name: str, node: NodeProto, weight: torch.Tensor, shared: bool) -> Convolution:
    refusal = None
    if weight.dim() != 4:
        refusal = f"a convolution of {weight.dim() - 2} dimensions"
    elif not is_real(weight):
        refusal = f"its weight is {weight.dtype}"
    elif shared:
        refusal = "shares its weight with another operation"
    depthwise = weight.dim() == 4 and weight.shape[1] == 1 and attribute_of(node, "group", 1) > 1
    shape = tuple(weight.shape) if weight.dim() == 4 else (1, 1, 1, 1)
    return Convolution(name, shape, depthwise, refusal)


def _norm(
    node: NodeProto, keys: Mapping[str, str], state: Mapping[str, torch.Tensor], uses: Mapping[str, int]
) -> Norm | None:
    if node.op_type != "BatchNormalization" or not is_fixed_norm(node):
        return None
    names = list(node.input[1:5])
    if any(name not in keys or uses[name] > 1 for name in names):
        return None
    own = tuple(keys[name] for name in names)
    if any(not is_real(state[key]) for key in own):
        return None
    return Norm(own, float(attribute_of(node, "epsilon", 1e-5)))
