"""An OpenVINO model as recipes see it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from ilwp_plugin.format.sections.graph import GraphSection
from ilwp_plugin.models.chains import Convolution, is_real
from ilwp_plugin.models.network import GraphNetwork, Layer, is_weight
from ilwp_plugin.models.tensors import dtype_of, tensor_of

from .ir import KIND, Graph, constants_of, graphs_of, key_of, read_ir, split

__all__ = ["open_model"]

_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "Convolution": (1,),
    "GroupConvolution": (1,),
    "ConvolutionBackpropData": (1,),
    "GroupConvolutionBackpropData": (1,),
    "MatMul": (0, 1),
    "LSTMCell": (3, 4),
    "LSTMSequence": (4, 5),
    "GRUCell": (2, 3),
    "GRUSequence": (3, 4),
    "RNNCell": (2, 3),
    "RNNSequence": (3, 4),
    "Gather": (0,),
}
"""Which inputs of an operation are weights."""

_BIAS_INPUTS = {"LSTMCell": 5, "LSTMSequence": 6, "GRUCell": 4, "GRUSequence": 5, "RNNCell": 4, "RNNSequence": 5}
"""Which input is a bias; that of convolutions and products is added after them."""

_PASSED = ("Convert", "Reshape", "Transpose", "Unsqueeze", "Squeeze")
"""What may stand between a constant and the operation whose weight it is."""

_MOST_DIMENSIONS = 5
"""Of a tensor that a chain holds."""


def open_model(source: str | os.PathLike[str] | tuple[bytes, bytes], config: Any = None) -> GraphNetwork:
    """An OpenVINO model for `ilwp_plugin.compress`.

    Args:
        source: the `.xml` file, with its `.bin` file beside it; or the contents of both.
        config: of the compression; a model in IR has nothing that depends on it.

    Raises:
        FileError: a file cannot be read, or is none of OpenVINO's.
    """
    where = "the model" if isinstance(source, tuple) else str(Path(source))
    xml, weights = source if isinstance(source, tuple) else read_ir(source)
    graphs = graphs_of(xml, where)
    constants = constants_of(graphs, len(weights), where)
    uses = [use for graph in graphs for use in _uses(graph)]
    weighted = {use.weight for use in uses}
    keys: dict[int, str] = {}
    for offset, constant in constants.items():
        keys[offset] = key_of(constant.name, offset in weighted, set(keys.values()))
    content, taken = split(xml, weights, constants, keys)
    state = {key: tensor_of(values, dtype_of(dtype)) for key, (dtype, values) in taken.items()}
    layers: dict[str, Layer] = {}
    convolutions: dict[str, Convolution] = {}
    users: dict[str, int] = {}
    for use in uses:
        key = keys.get(use.weight)
        if key is None or not is_weight(state[key]):
            continue
        name, bias = key.removesuffix(".weight"), keys.get(use.bias)
        users[name] = users.get(name, 0) + 1
        has_bias = bias is not None and bias != key and is_real(state[bias])
        layers.setdefault(name, Layer(name, use.kind, key, bias if has_bias else None))
        if use.kind in ("Convolution", "GroupConvolution"):
            convolutions[name] = _convolution(name, use, tuple(state[key].shape), users[name] > 1)
    size = None if isinstance(source, tuple) else len(xml) + len(weights)
    return GraphNetwork(
        state,
        layers,
        {},
        rest=(GraphSection(KIND, content),),
        no_weight="no weight of an operation that is known",
        source_bytes=size,
        convolutions=tuple(convolutions.values()),
    )


@dataclass(frozen=True)
class _Use:
    """A constant as the weight of an operation.

    Attributes:
        kind: of the operation.
        weight, bias: offsets of the constants; -1 where there is no such bias.
        direct: whether the operation gets the constant in its own shape.
    """

    kind: str
    weight: int
    bias: int
    direct: bool


def _uses(graph: Graph) -> Iterator[_Use]:
    """In the order of the operations in the file, which is one of execution."""
    readers: dict[str, list[str]] = {}
    for reader, sources in graph.sources.items():
        for source in sources:
            readers.setdefault(source, []).append(reader)
    for number, layer in graph.layers.items():
        kind = layer.get("type", "")
        sources = graph.sources.get(number, ())
        for place in _WEIGHT_INPUTS.get(kind, ()):
            weight, passed = _constant(graph, sources[place]) if place < len(sources) else (-1, ())
            if weight < 0:
                continue
            if kind in _BIAS_INPUTS:
                own = _BIAS_INPUTS[kind] if place == _WEIGHT_INPUTS[kind][0] else len(sources)
                biases = sources[own : own + 1]
            else:
                adds = [reader for reader in readers.get(number, ()) if graph.layers[reader].get("type") == "Add"]
                biases = [source for reader in adds[:1] for source in graph.sources[reader] if source != number]
            bias = _constant(graph, biases[0])[0] if biases and kind != "Gather" else -1
            yield _Use(kind, weight, bias, all(step == "Convert" for step in passed))


def _constant(graph: Graph, number: str) -> tuple[int, tuple[str, ...]]:
    """The offset of the constant that an input is, and what it passes on its way; -1 where it is none."""
    passed: list[str] = []
    while (layer := graph.layers.get(number)) is not None:
        kind = layer.get("type", "")
        if kind == "Const":
            return _offset(layer), tuple(passed)
        sources = graph.sources.get(number, ())
        if kind not in _PASSED or not sources or len(passed) > len(_PASSED):
            break
        passed.append(kind)
        number = sources[0]
    return -1, ()


def _offset(layer: Element) -> int:
    data = layer.find("data")
    text = "" if data is None else data.get("offset", "")
    return int(text) if text.isascii() and text.isdigit() else -1


def _convolution(name: str, use: _Use, shape: tuple[int, ...], shared: bool) -> Convolution:
    """Of a grouped one the weight is (groups, outputs of a group, inputs of a group, ...)."""
    grouped = use.kind == "GroupConvolution"
    refusal = None
    if shared:
        refusal = "shares its weight with another operation"
    elif not use.direct:
        refusal = "its weight is rearranged before it is used"
    elif not 3 <= len(shape) <= _MOST_DIMENSIONS:
        refusal = f"a weight of {len(shape)} dimensions"
    return Convolution(name, shape, grouped and shape[0] > 1 and shape[2] == 1, refusal)
