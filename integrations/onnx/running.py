"""An ONNX model that runs for calibration: its layers as modules of torch, all between them in ONNX Runtime.

So the inputs of each layer are there where its weights are quantized, with as many examples at a time as memory allows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import GraphProto, ModelProto, NodeProto, helper
from torch import Tensor, nn

from ilwp_plugin.errors import CalibrationError
from ilwp_plugin.models.tensors import array_of

from .layers import LayerNode
from .rearrange import attribute_of, is_onnx, number_of_uses, subgraphs_of
from .tensors import put_values

__all__ = ["OnnxModel", "RunningLayer", "SessionModel", "running_layers"]


@dataclass(frozen=True)
class RunningLayer:
    """A layer that runs as a module.

    Attributes:
        name: of the layer.
        node: its operation.
        added: the Add behind a MatMul that is its bias.
        weight: key of its weight.
        bias: likewise, if there is one.
        transposed: whether a module has the weight transposed.
    """

    name: str
    node: NodeProto
    added: NodeProto | None
    weight: str
    bias: str | None
    transposed: bool

    @property
    def output(self) -> str:
        """What it computes."""
        return str((self.added or self.node).output[0])


def running_layers(
    graph: GraphProto, layers: Sequence[LayerNode], keys: Mapping[str, str], state: Mapping[str, Tensor]
) -> list[RunningLayer]:
    """The layers that can run as modules: those of the outer graph whose weights are float32 and serve them alone.

    Args:
        graph: the outer graph.
        layers: see `layers_of`.
        keys: by name of an initializer, its key.
        state: by key.
    """
    uses, constants = number_of_uses(graph), {tensor.name for tensor in graph.initializer}
    outer = {id(node) for node in graph.node}
    found = []
    for layer in layers:
        node, key = layer.node, keys.get(layer.weight)
        if key is None or not layer.direct or uses[layer.weight] != 1 or id(node) not in outer or not is_onnx(node):
            continue
        if node.input[0] in constants:
            continue
        bias = keys.get(layer.bias) if layer.bias is not None else None
        if not key.endswith(".weight") or any(state[k].dtype != torch.float32 for k in (key, bias) if k is not None):
            continue
        added = None
        if node.op_type == "MatMul" and layer.bias is not None:
            added = next((n for n in graph.node if n.op_type == "Add" and layer.bias in n.input), None)
            if added is None or node.output[0] not in added.input:
                continue
        elif len(node.input) > 2 and node.input[2] and bias is None:
            continue  # a bias that is somebody else's, too
        if _can_run(node, layer.weight, state[key]):
            transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute_of(node, "transB", 0))
            found.append(RunningLayer(key.removesuffix(".weight"), node, added, key, bias, transposed))
    return found


def _can_run(node: NodeProto, weight: str, values: Tensor) -> bool:
    if node.op_type == "Conv":
        return values.dim() in (3, 4)
    if node.op_type == "Gemm":
        plain = attribute_of(node, "alpha", 1.0) == 1 and attribute_of(node, "beta", 1.0) == 1
        return plain and not attribute_of(node, "transA", 0) and list(node.input).index(weight) == 1
    return node.op_type == "MatMul" and values.dim() == 2 and list(node.input).index(weight) == 1


class OnnxModel(nn.Module):
    """Called with the inputs of the graph: a tensor, or several in their order or by their names.

    Args:
        model: without the values of what is in the state.
        values: by name of an initializer, those that were taken out.
        layers: that run as modules, whose values are in the state.
        state: by key.
    """

    def __init__(
        self,
        model: ModelProto,
        values: Mapping[str, Tensor],
        layers: Sequence[RunningLayer],
        state: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        fed = {tensor.name for tensor in model.graph.initializer}
        self.inputs = {value.name: _sizes(value) for value in model.graph.input if value.name not in fed}
        self.outputs = [value.name for value in model.graph.output]
        self._steps = _steps(model, values, layers)
        self._own: dict[str, nn.Module] = {}
        for layer in layers:
            self._own[layer.name] = _module(layer, state)
            _add(self, layer.name, self._own[layer.name])
        self._last = _last_uses(self._steps, self.outputs)
        self._one: bool | None = True if any(sizes[:1] == [1] for sizes in self.inputs.values()) else None
        if any(sizes and isinstance(sizes[0], int) and sizes[0] > 1 for sizes in self.inputs.values()):
            raise CalibrationError(
                "the ONNX model takes batches of one size only; export it with a batch of 1, or of any size "
                "(dynamic_axes, dynamic_shapes)"
            )

    @property
    def one_at_a_time(self) -> bool:
        """Whether the graph takes one example at a time; known once it has run."""
        return self._one is True

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the graph, with the examples along their first dimension."""
        given = dict(zip(self.inputs, args, strict=False), **kwargs)
        if len(args) > len(self.inputs) or given.keys() != self.inputs.keys():
            wanted = ", ".join(f"{name} {sizes}" for name, sizes in self.inputs.items())
            raise CalibrationError(f"the ONNX model takes {wanted}, got {len(args)} tensors and {sorted(kwargs)}")
        size = len(next(iter(given.values())))
        if self._one is None and size > 1:
            self._one = self._fits_one({name: tensor[:2] for name, tensor in given.items()})
        return self._run(given, size if self._one else 1)

    def _fits_one(self, given: Mapping[str, Tensor]) -> bool:
        """Whether the graph takes one example only, although it does not say so: shapes inside may be those of one."""
        try:
            together, alone = self._run(given, 1), self._run(given, 2)
        except Exception:  # of ONNX Runtime, where shapes do not fit
            return True
        return any(a.shape != b.shape for a, b in zip(together, alone, strict=True))

    def _run(self, given: Mapping[str, Tensor], parts: int) -> tuple[Tensor, ...]:
        """In some batches one beside the other; layers get the examples of all."""
        split = torch.tensor_split
        held = {name: [tensor] if parts == 1 else list(split(tensor, parts)) for name, tensor in given.items()}
        for number, step in enumerate(self._steps):
            if isinstance(step, _Segment):
                found = [step.run({name: held[name][part] for name in step.inputs}) for part in range(parts)]
                held.update({name: [one[place] for one in found] for place, name in enumerate(step.outputs)})
            else:
                held[step.output] = self._layer(step, held[step.node.input[0]])
            for name in self._last[number]:
                held.pop(name, None)
        return tuple(torch.cat(held[name]) if held[name][0].dim() else torch.stack(held[name]) for name in self.outputs)

    def _layer(self, layer: RunningLayer, inputs: list[Tensor]) -> list[Tensor]:
        x = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
        module = self._own[layer.name]
        flat = layer.node.op_type == "Conv" and x.dim() == 3
        if layer.node.op_type == "Conv":
            x = F.pad(x, _padding(layer.node, list(x.shape[2:]), module))
            x = x.unsqueeze(2) if flat else x
        y: Tensor = module(x)
        return list(torch.tensor_split(y.squeeze(2) if flat else y, len(inputs)))


def _add(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a module where its name says; names of ONNX may be those of methods, which `add_module` refuses."""
    *path, last = name.split(".")
    for part in path:
        if part not in model._modules:
            model._modules[part] = nn.Module()
        inner = model._modules[part]
        assert inner is not None
        model = inner
    if last in model._modules:  # there are modules inside this one
        layer._modules.update(model._modules[last]._modules)  # type: ignore[union-attr]
    model._modules[last] = layer


def _module(layer: RunningLayer, state: Mapping[str, Tensor]) -> nn.Module:
    weight = state[layer.weight]
    module: nn.Conv2d | nn.Linear
    if layer.node.op_type == "Conv":
        kernel = list(weight.shape[2:])
        two = len(kernel) == 2
        strides, dilations = (_numbers(layer.node, name) or [1] * len(kernel) for name in ("strides", "dilations"))
        groups = int(attribute_of(layer.node, "group", 1))
        module = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(kernel if two else [1, *kernel]),  # type: ignore[arg-type]
            tuple(strides if two else [1, *strides]),  # type: ignore[arg-type]
            0,
            tuple(dilations if two else [1, *dilations]),  # type: ignore[arg-type]
            groups,
            layer.bias is not None,
            device="meta",
        )
        weight = weight if two else weight.unsqueeze(2)
    else:
        weight = weight.T if layer.transposed else weight
        module = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        module.bias = nn.Parameter(state[layer.bias].reshape(-1), requires_grad=False)
    return module.eval()


def _numbers(node: NodeProto, name: str) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [])


def _padding(node: NodeProto, sizes: Sequence[int], module: nn.Module) -> list[int]:
    """As torch wants it: of the last dimension first."""
    how = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "auto_pad"), "NOTSET")
    dims = len(sizes)
    if how.startswith("SAME"):
        assert isinstance(module, nn.Conv2d)
        pads: list[int] = []
        for place in range(-1, -dims - 1, -1):
            reach = (module.kernel_size[place] - 1) * module.dilation[place] + 1
            stride = module.stride[place]
            total = max((-(-sizes[place] // stride) - 1) * stride + reach - sizes[place], 0)
            small, large = total // 2, total - total // 2
            pads += [small, large] if how == "SAME_UPPER" else [large, small]
        return pads
    given = _numbers(node, "pads") if how == "NOTSET" else []
    given = given or [0] * (2 * dims)
    return [given[side * dims + place] for place in range(dims - 1, -1, -1) for side in (0, 1)]


def _sizes(value: Any) -> list[int | str]:
    """Of an input: numbers, and names where any size goes."""
    shape = value.type.tensor_type.shape
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in shape.dim]


class _Segment:
    """Operations between layers, in a session of ONNX Runtime that is made when it is needed."""

    def __init__(
        self, nodes: Sequence[NodeProto], inputs: Sequence[str], outputs: Sequence[str], make: Callable[..., bytes]
    ):
        self.nodes, self.inputs, self.outputs = list(nodes), list(inputs), list(outputs)
        self._make = make
        self._session: onnxruntime.InferenceSession | None = None

    def run(self, given: Mapping[str, Tensor]) -> list[Tensor]:
        arrays = {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in given.items()}
        if self._session is None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = torch.get_num_threads()
            options.enable_cpu_mem_arena = False  # each session has one, of which nothing would be given back
            kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in arrays.items()}
            content = self._make(self, kinds)
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return [torch.from_numpy(np.asarray(array)) for array in self._session.run(self.outputs, arrays)]


def _steps(
    model: ModelProto, values: Mapping[str, Tensor], layers: Sequence[RunningLayer]
) -> list[_Segment | RunningLayer]:
    """A graph as layers and what is between them, in the order of its nodes."""
    by_node = {id(layer.node): layer for layer in layers}
    dropped = {id(layer.added) for layer in layers if layer.added is not None}
    runs: list[list[NodeProto] | RunningLayer] = []
    for node in model.graph.node:
        if id(node) in dropped:
            continue
        if id(node) in by_node:
            runs.append(by_node[id(node)])
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(node)
        else:
            runs.append([node])
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    later: set[str] = {value.name for value in model.graph.output}
    needed: list[set[str]] = []
    for run in reversed(runs):
        needed.insert(0, set(later))
        later.update([run.node.input[0]] if isinstance(run, RunningLayer) else (n for node in run for n in _used(node)))

    def make(segment: _Segment, kinds: Mapping[str, int]) -> bytes:
        own = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
        own.graph.name = "segment"
        own.graph.node.extend(segment.nodes)
        for name in dict.fromkeys(name for node in segment.nodes for name in _used(node)):
            if name in constants and name not in segment.inputs:
                tensor = own.graph.initializer.add()
                tensor.CopyFrom(constants[name])
                if name in values:
                    put_values(tensor, array_of(values[name]))
        for name in segment.inputs:
            own.graph.input.append(helper.make_tensor_value_info(name, kinds[name], None))
        own.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in segment.outputs)
        content: bytes = own.SerializeToString()
        return content

    steps: list[_Segment | RunningLayer] = []
    for run, wanted in zip(runs, needed, strict=True):
        if isinstance(run, RunningLayer):
            steps.append(run)
            continue
        made = {name for node in run for name in node.output if name}
        used = dict.fromkeys(name for node in run for name in _used(node))
        inputs = [name for name in used if name not in made and name not in constants]
        outputs = sorted(made & wanted)
        if outputs:
            steps.append(_Segment(run, inputs, outputs, make))
    return steps


def _used(node: NodeProto) -> list[str]:
    """What a node takes from outside, also by the graphs that it holds."""
    return [name for name in (*node.input, *(name for inner in subgraphs_of(node) for name in _free(inner))) if name]


def _free(graph: GraphProto) -> list[str]:
    """What a graph takes from the one around it."""
    made = {name for node in graph.node for name in node.output}
    made |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    used = [name for node in graph.node for name in _used(node)] + [value.name for value in graph.output]
    return [name for name in used if name not in made]


def _last_uses(steps: Sequence[_Segment | RunningLayer], outputs: Sequence[str]) -> list[list[str]]:
    """By step, what nobody needs after it."""
    last: dict[str, int] = {}
    for number, step in enumerate(steps):
        for name in step.inputs if isinstance(step, _Segment) else (step.node.input[0], step.output):
            last[name] = number
        for name in step.outputs if isinstance(step, _Segment) else ():
            last.setdefault(name, number)
    gone: dict[int, list[str]] = defaultdict(list)
    for name, number in last.items():
        if name not in outputs:
            gone[number].append(name)
    return [gone[number] for number in range(len(steps))]


class SessionModel:
    """A session of ONNX Runtime, called as an `OnnxModel` is.

    Args:
        session: the session.
        one: whether it takes one example at a time.
    """

    def __init__(self, session: onnxruntime.InferenceSession, one: bool) -> None:
        self._session, self._one = session, one
        self._names = [value.name for value in session.get_inputs()]

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        given = {name: tensor.numpy() for name, tensor in dict(zip(self._names, args, strict=False), **kwargs).items()}
        size = len(next(iter(given.values())))
        parts = size if self._one else 1
        split = {name: np.array_split(array, parts) for name, array in given.items()}
        found = [self._session.run(None, {name: arrays[i] for name, arrays in split.items()}) for i in range(parts)]
        return tuple(
            torch.from_numpy(np.concatenate([np.atleast_1d(a) for a in arrays])) for arrays in zip(*found, strict=True)
        )
