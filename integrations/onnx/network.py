"""An ONNX model as recipes see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from ilwp_plugin.models.chains import Chains, Convolution, Scope, is_real, select_chains
from ilwp_plugin.models.network import Layer, Network, Norm, is_weight
from ilwp_plugin.models.tensors import dtype_of, tensor_of

from .graph import WEIGHT_INPUTS, graphs_of, key_in

__all__ = ["OnnxNetwork"]


class OnnxNetwork(Network):
    """Of an ONNX model whose tensors were taken out; layers stand in the order of its nodes."""

    convolutions: Sequence[Convolution]

    @classmethod
    def of(cls, model: ModelProto, taken: Mapping[str, tuple[str, NDArray[Any]]]) -> OnnxNetwork:
        """See `graph.take_out`."""
        state = {key: tensor_of(values, dtype_of(dtype)) for key, (dtype, values) in taken.items()}
        keys = {tensor.name: key for tensor in model.graph.initializer if (key := key_in(tensor)) is not None}
        nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
        uses = Counter(name for node in nodes for name in node.input)
        layers: dict[str, Layer] = {}
        norms: dict[str, Norm] = {}
        convolutions: list[Convolution] = []
        for node in nodes:
            for layer in _layers(node, keys, state):
                if layer.name not in layers:
                    layers[layer.name] = layer
            if node.op_type == "Conv" and len(node.input) > 1 and node.input[1] in keys:
                convolutions.append(_convolution(node, keys, state, uses))
            norm = _norm(node, keys, state, uses)
            if norm is not None:
                norms[norm.keys[0]] = norm
        for key, tensor in state.items():  # weights of operations that are not known
            name = key.removesuffix(".weight")
            if is_weight(tensor) and all(layer.weight != key for layer in layers.values()):
                layers[name] = Layer(name, "tensor", key)
        network = cls(state, layers, norms)
        object.__setattr__(network, "convolutions", tuple({c.name: c for c in convolutions}.values()))
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


def _layers(node: NodeProto, keys: Mapping[str, str], state: Mapping[str, torch.Tensor]) -> list[Layer]:
    found = []
    for number in WEIGHT_INPUTS.get(node.op_type, ()):
        key = keys.get(node.input[number]) if number < len(node.input) else None
        if key is None or not is_weight(state[key]):
            continue
        bias = (
            keys.get(node.input[2])
            if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2
            else None
        )
        own = bias if bias is not None and is_real(state[bias]) else None
        found.append(Layer(key.removesuffix(".weight"), node.op_type, key, own))
    return found


def _convolution(
    node: NodeProto, keys: Mapping[str, str], state: Mapping[str, torch.Tensor], uses: Mapping[str, int]
) -> Convolution:
    key = keys[node.input[1]]
    weight = state[key]
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    refusal = None
    if weight.dim() != 4:
        refusal = f"a convolution of {weight.dim() - 2} dimensions"
    elif not is_real(weight):
        refusal = f"its weight is {weight.dtype}"
    elif uses[node.input[1]] > 1:
        refusal = "shares its weight with another operation"
    depthwise = weight.dim() == 4 and weight.shape[1] == 1 and group > 1
    shape = tuple(weight.shape) if weight.dim() == 4 else (1, 1, 1, 1)
    return Convolution(key.removesuffix(".weight"), shape, depthwise, refusal)


def _norm(
    node: NodeProto, keys: Mapping[str, str], state: Mapping[str, torch.Tensor], uses: Mapping[str, int]
) -> Norm | None:
    if node.op_type != "BatchNormalization" or len(node.output) > 1 or len(node.input) < 5:
        return None
    if any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
        return None
    names = list(node.input[1:5])
    if any(name not in keys or uses[name] > 1 for name in names):
        return None
    own = tuple(keys[name] for name in names)
    if any(not is_real(state[key]) for key in own):
        return None
    eps = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    return Norm(own, float(eps))
