"""Which tensors of a graph are the weights of which layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

from .rearrange import graphs_of, number_of_uses

__all__ = ["WEIGHT_INPUTS", "LayerNode", "layers_of"]

WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "DeformConv": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
    "Einsum": (0, 1),
    # of ONNX Runtime
    "FusedConv": (1,),
    "FusedGemm": (0, 1),
    "FusedMatMul": (0, 1),
    "GemmFastGelu": (1,),
    "Attention": (1,),
    "EmbedLayerNormalization": (2, 3, 4),
}
"""Which inputs of an operation are weights."""

_BIASES = dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "FusedConv", "FusedGemm"), 2)
_BIASES |= dict.fromkeys(("LSTM", "GRU", "RNN"), 3)
"""Which input of an operation is its bias; that of a MatMul is added behind it."""

_ON_THE_WAY = frozenset(
    ["Cast", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"]
)
"""Operations behind which a weight is still one."""

_FAR = 8
"""So many of them are followed."""


@dataclass(frozen=True)
class LayerNode:
    """A layer.

    Attributes:
        node: its operation.
        weight: name of its weight among the initializers.
        bias: likewise, where the bias is there and serves it alone.
        direct: whether the weight goes into the operation as it is.
    """

    node: NodeProto
    weight: str
    bias: str | None
    direct: bool


def layers_of(graph: GraphProto, tensors: Mapping[str, int]) -> list[LayerNode]:
    """The layers of a graph and of those inside it, in the order of their operations; each weight once.

    Args:
        graph: the outer graph.
        tensors: by name of an initializer, how many dimensions it has.
    """
    nodes = [node for inner in graphs_of(graph) for node in inner.node]
    uses = number_of_uses(graph)
    users: dict[str, list[NodeProto]] = defaultdict(list)
    sources: dict[str, NodeProto] = {}
    for node in nodes:
        for name in node.input:
            users[name].append(node)
        for name in node.output:
            sources[name] = node
    found: dict[str, LayerNode] = {}
    for node in nodes:
        for number in WEIGHT_INPUTS.get(node.op_type, ()):
            if number >= len(node.input):
                continue
            for name in _origins(node.input[number], tensors, sources):
                direct = name == node.input[number]
                bias = _bias(node, number, tensors, uses, users)
                known = found.get(name)
                if known is None or (direct and not known.direct):
                    found[name] = LayerNode(node, name, bias if direct else None, direct)
    return list(found.values())


def _origins(name: str, tensors: Mapping[str, int], sources: Mapping[str, NodeProto], far: int = _FAR) -> list[str]:
    """The initializers that a value is made of by moving values only."""
    if name in tensors:
        return [name]
    node = sources.get(name)
    if node is None or node.op_type not in _ON_THE_WAY or not far:
        return []
    given = node.input if node.op_type == "Concat" else node.input[:1]
    return [origin for value in given for origin in _origins(value, tensors, sources, far - 1)]


def _bias(
    node: NodeProto,
    number: int,
    tensors: Mapping[str, int],
    uses: Mapping[str, int],
    users: Mapping[str, list[NodeProto]],
) -> str | None:
    if number != 1:
        return None
    place = _BIASES.get(node.op_type)
    if place is not None:
        candidates = list(node.input[place : place + 1])
    elif node.op_type == "MatMul" and uses[node.output[0]] == 1:
        candidates = [name for user in users[node.output[0]] if user.op_type == "Add" for name in user.input]
        candidates = [name for name in candidates if tensors.get(name) == 1]
    else:
        candidates = []
    return next((name for name in candidates if name in tensors and uses[name] == 1), None)
