"""An ONNX model as recipes see it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.format.sections.graph import GraphSection
from ilwp_plugin.models.chains import Convolution, is_real
from ilwp_plugin.models.network import GraphNetwork, Layer, Norm, is_weight
from ilwp_plugin.models.tensors import array_of, dtype_of, tensor_of

from .graph import key_in, load_model, take_out
from .layers import LayerNode, layers_of
from .rearrange import (
    attribute_of,
    fold_norms,
    gather_values,
    graphs_of,
    is_fixed_norm,
    number_of_uses,
    quantize_constants,
)
from .running import OnnxModel, RunningLayer, SessionModel, running_layers
from .session import KIND, session_of

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
    quantize_constants(model)
    if IlwpConfig.of(config).batch_norm != "exact":
        fold_norms(model)
    layers = layers_of(model.graph, {tensor.name: len(tensor.dims) for tensor in model.graph.initializer})
    taken = take_out(model, layers)
    return OnnxNetwork.of(model, taken, layers, size)


@dataclass(frozen=True, eq=False)
class OnnxNetwork(GraphNetwork):
    """Of an ONNX model whose tensors were taken out; layers stand in the order of its nodes.

    Attributes:
        running: by name, the layers that run as modules.
        model: without the values that are in the state.
        keys: by name of an initializer, its key in the state.
    """

    running: Mapping[str, RunningLayer] = field(default_factory=dict)
    model: ModelProto = field(default_factory=ModelProto)
    keys: Mapping[str, str] = field(default_factory=dict)

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
        running = {layer.name: layer for layer in running_layers(model.graph, layers, keys, state)}
        found: dict[str, Layer] = {}
        convolutions: list[Convolution] = []
        for layer in layers:
            key = keys.get(layer.weight)
            if key is None or not is_weight(state[key]):
                continue
            bias = keys.get(layer.bias) if layer.bias is not None else None
            own = bias if bias is not None and is_real(state[bias]) else None
            name = key.removesuffix(".weight")
            found[name] = Layer(name, layer.node.op_type, key, own, name in running)
            if layer.node.op_type == "Conv" and layer.direct:
                convolutions.append(_convolution(name, layer.node, state[key], uses[layer.weight] > 1))
        nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
        norms = {norm.keys[0]: norm for node in nodes if (norm := _norm(node, keys, state, uses)) is not None}
        claimed = {key for layer in found.values() for key in (layer.weight, layer.bias)}
        claimed |= {key for norm in norms.values() for key in norm.keys}
        vectors = [keys[n] for node in nodes for n in _vectors_of(node) if n in keys and uses[n] == 1]
        return cls(
            state,
            found,
            norms,
            vectors=tuple(key for key in vectors if key not in claimed and _is_vector(state[key])),
            rest=(GraphSection(KIND, model.SerializeToString(deterministic=True)),),
            no_weight="a constant of an operation without weights",
            source_bytes=size,
            convolutions=tuple(convolutions),
            running=running,
            model=model,
            keys=keys,
        )

    def runnable(self) -> OnnxModel | None:
        return self._runnable

    @cached_property
    def _runnable(self) -> OnnxModel | None:
        held = {key for layer in self.running.values() for key in (layer.weight, layer.bias)}
        values = {name: self.state[key] for name, key in self.keys.items() if key not in held}
        return OnnxModel(self.model, values, list(self.running.values()), self.state)

    def input_shapes(self) -> dict[str, list[int | str]]:
        model = self.runnable()
        return {} if model is None else model.inputs

    def in_module(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        layer = self.running[name]
        if layer.transposed:
            return weight.T
        return weight.unsqueeze(2) if layer.node.op_type == "Conv" and weight.dim() == 3 else weight

    def from_module(self, name: str, weight: torch.Tensor) -> tuple[torch.Tensor, bool]:
        layer = self.running[name]
        shape = self.state[layer.weight].shape
        return (weight.T, True) if layer.transposed else (weight.reshape(shape), False)

    def evaluated(self, state: Mapping[str, torch.Tensor] | None) -> onnxruntime.InferenceSession:
        """A session of ONNX Runtime."""
        values = self.state if state is None else state
        return session_of(self.model.SerializeToString(), lambda key: array_of(values[key]))

    def callable_of(self, evaluated: Any) -> SessionModel:
        model = self.runnable()
        return SessionModel(evaluated, model is not None and model.one_at_a_time)


def _convolution(name: str, node: NodeProto, weight: torch.Tensor, shared: bool) -> Convolution:
    refusal = None
    if not is_real(weight):
        refusal = f"its weight is {weight.dtype}"
    elif shared:
        refusal = "shares its weight with another operation"
    depthwise = weight.shape[1] == 1 and attribute_of(node, "group", 1) > 1
    return Convolution(name, tuple(weight.shape), depthwise, refusal)


_VECTORS = {
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    # of ONNX Runtime
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
    "GroupNorm": (1, 2),
}
"""Which inputs of an operation are scales and shifts of channels."""


def _is_vector(tensor: torch.Tensor) -> bool:
    return is_real(tensor) and tensor.numel() > 1 and sum(size > 1 for size in tensor.shape) == 1


def _vectors_of(node: NodeProto) -> list[str]:
    places = _VECTORS.get(node.op_type, ())
    return [node.input[place] for place in places if place < len(node.input) and node.input[place]]


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
