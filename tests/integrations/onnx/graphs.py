"""Small ONNX models of every kind of layer, and of every place where tensors may stand."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Values = dict[str, np.ndarray]
GRAPHS: dict[str, Callable[[], tuple[ModelProto, Values]]] = {}
IR = {11: 6, 13: 7, 17: 8, 20: 9, 22: 10}
"""Versions of the format by operator set."""


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def build(
    nodes: Sequence[NodeProto],
    inputs: Values,
    outputs: dict[str, Sequence[Any]],
    initializers: Values,
    opset: int = 17,
    ir: int | None = None,
    domains: Sequence[str] = (),
) -> tuple[ModelProto, Values]:
    def described(name: str, values: np.ndarray) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)

    graph = helper.make_graph(
        list(nodes),
        "g",
        [described(name, values) for name, values in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in initializers.items()],
    )
    sets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=sets, ir_version=ir or IR[opset]), inputs


def graph(function: Callable[[], tuple[ModelProto, Values]]) -> Callable[[], tuple[ModelProto, Values]]:
    GRAPHS[function.__name__] = function
    return function


def norm_values(channels: int) -> Values:
    return {
        "gain": random(channels, seed=1) + 1,
        "shift": random(channels, seed=2),
        "mean": random(channels, seed=3),
        "variance": np.abs(random(channels, seed=4)) + 0.1,
    }


def convolution(kernel: tuple[int, ...], opset: int, *, groups: int = 1, transposed: bool = False) -> Any:
    weight = random(8, 8 // groups, *kernel)
    node = helper.make_node("ConvTranspose" if transposed else "Conv", ["x", "w", "b"], ["c"], group=groups)
    norm = helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["y"])
    values = {"w": weight, "b": random(8), **norm_values(8)}
    return build(
        [node, norm], {"x": random(2, 8, *[7] * len(kernel))}, {"y": [None] * (2 + len(kernel))}, values, opset
    )


@graph
def conv_1d() -> Any:
    return convolution((3,), 11)


@graph
def conv_2d_of_the_newest_operators() -> Any:
    return convolution((3, 3), 22)


@graph
def conv_3d() -> Any:
    return convolution((3, 3, 3), 13)


@graph
def conv_transpose_in_groups() -> Any:
    return convolution((3, 3), 17, groups=2, transposed=True)


@graph
def conv_transpose_1d() -> Any:
    return convolution((4,), 20, transposed=True)


@graph
def depthwise() -> Any:
    nodes = [helper.make_node("Conv", [f"v{i}", f"w{i}"], [f"v{i + 1}"], group=16) for i in range(3)]
    weights = {f"w{i}": random(16, 1, 3, 3, seed=i) for i in range(3)}
    return build(nodes, {"v0": random(1, 16, 9, 9)}, {"v3": [1, 16, 3, 3]}, weights)


@graph
def gemm_and_norm() -> Any:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["c"], transB=1),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["y"], epsilon=1e-3),
    ]
    return build(nodes, {"x": random(3, 20)}, {"y": [3, 12]}, {"w": random(12, 20), **norm_values(12)})


@graph
def matmul_behind_a_transpose() -> Any:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    return build(nodes, {"x": random(3, 20)}, {"y": [3, 12]}, {"w": random(12, 20), "b": random(12)})


@graph
def lstm() -> Any:
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=6, direction="bidirectional")
    values = {"w": random(2, 24, 5), "r": random(2, 24, 6), "b": random(2, 48)}
    return build([node], {"x": random(4, 3, 5)}, {"y": [4, 2, 3, 6]}, values)


@graph
def gru() -> Any:
    node = helper.make_node("GRU", ["x", "w", "r", "b"], ["y"], hidden_size=6, linear_before_reset=1)
    values = {"w": random(1, 18, 5), "r": random(1, 18, 6), "b": random(1, 36)}
    return build([node], {"x": random(4, 3, 5)}, {"y": [4, 1, 3, 6]}, values)


@graph
def embedding() -> Any:
    nodes = [helper.make_node("Gather", ["table", "x"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])]
    tokens = np.array([[1, 5, 29]], np.int64)
    return build(nodes, {"x": tokens}, {"y": [1, 3, 4]}, {"table": random(30, 16), "w": random(16, 4)})


@graph
def shared_and_constant() -> Any:
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(random(16, 16, seed=5), "k"))
    listed = helper.make_node("Constant", [], ["s"], value_floats=[float(x) for x in random(16)])
    nodes = [
        constant,
        listed,
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("MatMul", ["b", "k"], ["c"]),
        helper.make_node("Add", ["c", "s"], ["y"]),
    ]
    return build(nodes, {"x": random(2, 16)}, {"y": [2, 16]}, {"w": random(16, 16)})


@graph
def initializers_that_are_inputs() -> Any:
    model, inputs = convolution((3, 3), 11)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model, inputs


@graph
def branches() -> Any:
    """Two with initializers of one name, which the graph around them uses for something else."""

    def branch(seed: int) -> Any:
        inner = helper.make_node("If", ["flag"], ["z"], then_branch=leaf(seed + 10), else_branch=leaf(seed + 20))
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), inner, helper.make_node("Add", ["h", "z"], ["out"])]
        weights = [numpy_helper.from_array(random(16, 16, seed=seed), "w")]
        return helper.make_graph(nodes, f"b{seed}", [], [helper.make_tensor_value_info("out", 1, [2, 16])], weights)

    def leaf(seed: int) -> Any:
        value = numpy_helper.from_array(random(2, 16, seed=seed), "v")
        nodes = [helper.make_node("Constant", [], ["v"], value=value), helper.make_node("Add", ["v", "x"], ["o"])]
        return helper.make_graph(nodes, f"l{seed}", [], [helper.make_tensor_value_info("o", 1, [2, 16])])

    nodes = [
        helper.make_node("If", ["flag"], ["a"], then_branch=branch(1), else_branch=branch(2)),
        helper.make_node("MatMul", ["a", "w_2"], ["y"]),
    ]
    return build(nodes, {"flag": np.array(True), "x": random(2, 16)}, {"y": [2, 16]}, {"w_2": random(16, 16, seed=9)})


@graph
def loop() -> Any:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"]),
            helper.make_node("Identity", ["going"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 16]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, 16]),
        ],
        [numpy_helper.from_array(random(16, 16) / 4, "w")],
    )
    nodes = [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)]
    return build(nodes, {"x": random(2, 16)}, {"y": [2, 16]}, {"times": np.array(3, np.int64)})


@graph
def half_precision() -> Any:
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "f"], ["y"]),
    ]
    return build(nodes, {"x": random(1, 8, 5, 5)}, {"y": [1, 16, 3, 3]}, {"w": random(16, 8, 3, 3).astype(np.float16)})


@graph
def types_that_numpy_lacks() -> Any:
    nodes, values = [], []
    for number, kind in enumerate((TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4)):
        values.append(helper.make_tensor(f"w{number}", kind, [16, 16], np.arange(256) % 7 - 3))
        source = f"w{number}"
        if kind == TensorProto.INT4:
            nodes.append(helper.make_node("DequantizeLinear", [source, "scale"], [f"f{number}"]))
        else:
            nodes.append(helper.make_node("Cast", [source], [f"f{number}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("MatMul", [f"v{number}", f"f{number}"], [f"v{number + 1}"]))
    model, inputs = build(nodes, {"v0": random(2, 16)}, {"v3": [2, 16]}, {"scale": np.array(0.1, np.float32)}, 22)
    model.graph.initializer.extend(values)
    return model, inputs


@graph
def a_table_that_is_no_weight() -> Any:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Mul", ["m", "table"], ["y"])]
    return build(nodes, {"x": random(4, 16)}, {"y": [4, 16]}, {"w": random(16, 16), "table": random(4, 16) * 300})


@graph
def operators_of_onnx_runtime() -> Any:
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transB=1, alpha=0.5)
    return build([node], {"x": random(3, 20)}, {"y": [3, 12]}, {"w": random(12, 20)}, domains=["com.microsoft"])


@graph
def pads_that_shapes_depend_on() -> Any:
    """ONNX Runtime reads them before it gets values from outside."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Pad", ["m", "pads"], ["y"])]
    values = {"w": random(16, 16), "pads": np.array([0, 1, 0, 1, 2, 0, 0, 3, 0, 0], np.int64)}
    return build(nodes, {"x": random(1, 2, 1, 3, 16)}, {"y": [None] * 5}, values)
