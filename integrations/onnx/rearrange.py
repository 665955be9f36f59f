"""A graph whose tensors can be taken out: values in one place, batch norms in the layers before them.

What a model computes stays the same, but for the rounding of what is folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from .tensors import SMALL, dtype_in_file, nbytes, put_values, tensor_of_list, values_of

__all__ = [
    "attribute_of",
    "fold_norms",
    "gather_values",
    "graphs_of",
    "is_fixed_norm",
    "is_onnx",
    "number_of_uses",
    "quantize_constants",
    "subgraphs_of",
]

_SEEING = ("If", "Loop", "Scan")
"""Operations whose graphs see the values of the graph around them."""


def subgraphs_of(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside its nodes, the outer ones first."""
    yield graph
    for node in graph.node:
        for inner in subgraphs_of(node):
            yield from graphs_of(inner)


def is_onnx(node: NodeProto) -> bool:
    """Whether an operation is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")


def number_of_uses(graph: GraphProto) -> Counter[str]:
    """How often each value is used, by nodes of any depth and as output of a graph."""
    uses: Counter[str] = Counter()
    for inner in graphs_of(graph):
        uses.update(name for node in inner.node for name in node.input)
        uses.update(output.name for output in inner.output)
    return uses


def gather_values(model: ModelProto) -> None:
    """Make initializers of the outer graph of all constants and inner initializers that are not small, in place."""
    before = len(model.graph.initializer)
    defined = Counter(name for graph in graphs_of(model.graph) for name in _defined(graph))
    _constants_to_initializers(model.graph)
    for node in model.graph.node:
        if node.op_type in _SEEING and is_onnx(node):
            for inner in subgraphs_of(node):
                _hoist(inner, model.graph, defined)
    if len(model.graph.initializer) > before:
        model.ir_version = max(model.ir_version, 4)  # before it, each initializer had to be an input as well


def _defined(graph: GraphProto) -> list[str]:
    names = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    return [*dict.fromkeys(names), *(name for node in graph.node for name in node.output if name)]


def _hoist(graph: GraphProto, outer: GraphProto, defined: Counter[str]) -> None:
    _constants_to_initializers(graph)
    fixed = {value.name for value in (*graph.input, *graph.output)}
    moved = [t for t in graph.initializer if t.name not in fixed and _is_worth_it(t)]
    kept = [t for t in graph.initializer if t.name in fixed or not _is_worth_it(t)]
    for tensor in moved:
        name, number = tensor.name, 1
        if defined[name] > 1:
            while name in defined:
                number += 1
                name = f"{tensor.name}_{number}"
            defined[name] += 1
            _rename(graph, tensor.name, name)
        described = [value for value in graph.value_info if value.name == tensor.name]
        for value in described:
            graph.value_info.remove(value)
        outer.initializer.add().CopyFrom(tensor)
        outer.initializer[-1].name = name
    if moved:
        rest = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(rest)
    for node in graph.node:
        if node.op_type in _SEEING and is_onnx(node):
            for inner in subgraphs_of(node):
                _hoist(inner, outer, defined)


def _rename(graph: GraphProto, old: str, new: str) -> None:
    """What nodes call a value, in a graph and in those inside that do not define the name anew."""
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name == old:
                node.input[number] = new
        for inner in subgraphs_of(node):
            if old not in _defined(inner):
                _rename(inner, old, new)


def _is_worth_it(tensor: TensorProto) -> bool:
    return dtype_in_file(tensor.data_type) is not None and nbytes(tensor) >= SMALL


def _constants_to_initializers(graph: GraphProto) -> None:
    """Those of a graph itself; where a constant is an output of it, it stays."""
    outputs = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    found: list[TensorProto] = []
    for node in graph.node:
        tensor = _constant(node) if node.op_type == "Constant" and is_onnx(node) else None
        if tensor is not None and _is_worth_it(tensor) and node.output[0] not in outputs:
            tensor.name = node.output[0]
            found.append(tensor)
        else:
            kept.append(node)
    if found:
        copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
        graph.initializer.extend(found)
        del graph.node[:]
        graph.node.extend(copies)


def _constant(node: NodeProto) -> TensorProto | None:
    """What a Constant holds, as a tensor of its own; None where it is none of many numbers."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
            copy = TensorProto()
            copy.CopyFrom(attribute.t)
            return copy
        if attribute.name == "value_floats":
            return tensor_of_list("", attribute.floats, TensorProto.FLOAT)
        if attribute.name == "value_ints":
            return tensor_of_list("", attribute.ints, TensorProto.INT64)
    return None


def fold_norms(model: ModelProto) -> int:
    """Put batch norms into the convolution or Gemm that they follow, in place; returns how many.

    That is done where a layer's output goes to its batch norm alone, all tensors are initializers, and those of the
    layer serve it alone; in float64, rounded once.
    """
    uses = number_of_uses(model.graph)
    # Since version 4 an initializer that is also an input is a default, in the place of which another value may be fed.
    inputs = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in inputs}
    folded = sum(_fold(graph, model.graph, tensors, uses) for graph in graphs_of(model.graph))
    if folded and model.ir_version < 4:
        values = [value for value in model.graph.input if uses[value.name]]
        copies = [ValueInfoProto.FromString(value.SerializeToString()) for value in values]
        del model.graph.input[:]
        model.graph.input.extend(copies)
        model.ir_version = 4
    return folded


_FLOATS: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.DOUBLE: np.dtype("<f8"),
}


def _fold(graph: GraphProto, outer: GraphProto, tensors: dict[str, TensorProto], uses: Counter[str]) -> int:
    makers = {node.output[0]: node for node in graph.node if len(node.output) == 1}
    removed: list[NodeProto] = []
    gone: set[str] = set()
    for norm in graph.node:
        layer = makers.get(norm.input[0]) if norm.op_type == "BatchNormalization" and norm.input else None
        folded = _folded(layer, norm, tensors, uses) if layer is not None and is_fixed_norm(norm) else None
        if layer is None or folded is None:
            continue
        weight, bias = folded
        put_values(tensors[layer.input[1]], weight)
        if len(layer.input) > 2 and layer.input[2]:
            put_values(tensors[layer.input[2]], bias)
        else:
            name = f"{layer.input[1].removesuffix('.weight')}.bias"
            while name in tensors or name in uses or name in makers:
                name += "_"
            added = outer.initializer.add(name=name, data_type=tensors[layer.input[1]].data_type, dims=bias.shape)
            put_values(added, bias)
            tensors[name] = added
            del layer.input[2:]
            layer.input.append(name)
        for value in [value for value in graph.value_info if value.name == layer.output[0]]:
            graph.value_info.remove(value)
        layer.output[0] = norm.output[0]
        makers[norm.output[0]] = layer
        for name in norm.input[1:5]:
            uses[name] -= 1
            if not uses[name]:
                gone.add(name)
        removed.append(norm)
    for norm in removed:
        graph.node.remove(norm)
    for tensor in [tensor for tensor in outer.initializer if tensor.name in gone]:
        outer.initializer.remove(tensor)
    return len(removed)


def is_fixed_norm(node: NodeProto) -> bool:
    """Whether a BatchNormalization is one for inference."""
    training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    several = len([name for name in node.output if name]) > 1  # until opset 13 that is training
    return not training and not several and len(node.input) == 5 and is_onnx(node)


def attribute_of(node: NodeProto, name: str, default: float) -> float:
    """A number among a node's attributes."""
    for attribute in node.attribute:
        if attribute.name == name:
            return float(attribute.f if attribute.type == AttributeProto.FLOAT else attribute.i)
    return default


def _folded(
    layer: NodeProto, norm: NodeProto, tensors: Mapping[str, TensorProto], uses: Mapping[str, int]
) -> tuple[NDArray[np.floating], NDArray[np.floating]] | None:
    """The weight and the bias of a layer and the batch norm behind it; None where that cannot be."""
    own = [name for name in layer.input[1:3] if name]
    if layer.op_type not in ("Conv", "ConvTranspose", "Gemm") or not is_onnx(layer) or len(layer.input) < 2:
        return None
    if uses[layer.output[0]] != 1 or any(name not in tensors or uses[name] != 1 for name in own):
        return None
    if any(name not in tensors for name in norm.input[1:]):
        return None
    given = [tensors[name] for name in (*own, *norm.input[1:])]
    kinds = {tensor.data_type for tensor in given[: len(own)]}
    if len(kinds) != 1 or any(tensor.data_type not in _FLOATS for tensor in given):
        return None
    values = [values_of(tensor).astype(np.float64) for tensor in given]
    weight, (gain, shift, mean, variance) = values[0], values[-4:]
    deviation = np.sqrt(variance + np.float64(np.float32(attribute_of(norm, "epsilon", 1e-5))))
    with np.errstate(all="ignore"):
        scale = gain / deviation
    before = values[1] if len(own) > 1 else np.zeros(len(mean))
    if layer.op_type == "Gemm":
        if attribute_of(layer, "alpha", 1.0) != 1 or (len(own) > 1 and attribute_of(layer, "beta", 1.0) != 1):
            return None
        outputs = 0 if attribute_of(layer, "transB", 0) else 1
        scales = np.expand_dims(scale, 1 - outputs)
    elif layer.op_type == "ConvTranspose":
        groups = int(attribute_of(layer, "group", 1))
        per_group = scale.reshape(groups, 1, -1)
        rows = len(weight) // groups
        scales = np.repeat(per_group, rows, axis=1).reshape(len(weight), -1, *[1] * (weight.ndim - 2))
    else:
        scales = scale.reshape(-1, *[1] * (weight.ndim - 1))
    if before.shape != mean.shape:
        return None
    dtype = _FLOATS[given[0].data_type]
    with np.errstate(all="ignore"):
        folded = (weight * scales).astype(dtype), ((before - mean) * scale + shift).astype(dtype)
    return folded if all(bool(np.isfinite(part).all()) for part in folded) else None


def quantize_constants(model: ModelProto) -> int:
    """Put the codes of float weights that the graph quantizes itself in their place, in place; returns how many.

    Some toolkits write weights as floats that go through QuantizeLinear. ONNX Runtime computes the same codes from them
    when it opens the model, so a file holds the codes, of a quarter of the size.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
    uses = number_of_uses(model.graph)
    done: list[NodeProto] = []
    gone: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or not is_onnx(node) or set(node.input) & inputs:
            continue
        given = [tensors.get(name) for name in node.input if name]
        codes = None if None in given else _codes(node, [tensor for tensor in given if tensor is not None])
        if codes is None or nbytes(codes) < SMALL:
            continue
        model.graph.initializer.add().CopyFrom(codes)
        done.append(node)
        for name in node.input:
            uses[name] -= 1
            if not uses[name]:
                gone.add(name)
    for node in done:
        model.graph.node.remove(node)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in gone]:
        model.graph.initializer.remove(tensor)
    return len(done)


_CODES: dict[int, str] = {
    TensorProto.INT8: "i1",
    TensorProto.UINT8: "u1",
    TensorProto.INT16: "<i2",
    TensorProto.UINT16: "<u2",
}


def _codes(node: NodeProto, given: list[TensorProto]) -> TensorProto | None:
    """What a QuantizeLinear makes of constants, as ONNX Runtime computes it; None where that is not known."""
    if len(given) < 2 or any(tensor.data_type != TensorProto.FLOAT for tensor in given[:2]):
        return None
    known = {"axis", "saturate", "output_dtype", "block_size", "precision"}
    if any(a.name not in known or (a.name in ("block_size", "precision") and a.i) for a in node.attribute):
        return None
    kind = given[2].data_type if len(given) > 2 else int(attribute_of(node, "output_dtype", 0)) or TensorProto.UINT8
    if kind not in _CODES:
        return None
    values, scale = values_of(given[0]), values_of(given[1])
    point = values_of(given[2]).astype(np.int64) if len(given) > 2 else np.zeros(scale.shape, np.int64)
    if scale.size > 1:
        axis = int(attribute_of(node, "axis", 1)) % max(1, values.ndim)
        if scale.ndim != 1 or len(scale) != values.shape[axis]:
            return None
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, point = scale.reshape(shape), point.reshape(shape)
    with np.errstate(all="ignore"):
        levels = np.rint(values / scale.astype(np.float32)).astype(np.float64) + point
    if not bool(np.isfinite(levels).all()):
        return None
    limits = np.iinfo(_CODES[kind])
    codes = np.clip(levels, limits.min, limits.max).astype(_CODES[kind])
    tensor = TensorProto(name=node.output[0], data_type=kind, dims=codes.shape)
    put_values(tensor, codes)
    return tensor
