"""torch.export programs: their convolutions, batch norms and linear layers as modules again."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from ilwp_plugin.errors import FileError, TensorError
from ilwp_plugin.paths import check_regular, untrusted

__all__ = ["example_inputs_of", "layers_of_program", "load_into_program", "read_program", "write_program"]


def read_program(path: str | os.PathLike[str], *, trust: bool = False) -> ExportedProgram:
    """Read a .pt2 file, as `torch.export.save` writes it.

    torch has no safe way to read one: inputs and constants may be pickles, expressions of shapes are evaluated, guards
    are Python, compiled parts are shared libraries. So a file is read only where the caller vouches for it.

    Args:
        path: the file.
        trust: whoever made the file may run code here.

    Raises:
        FileError: it cannot be read, or is none, or `trust` was not given.
    """
    check_regular(path)
    if not trust:
        raise FileError(untrusted(path))
    try:
        return torch.export.load(path)
    except Exception as error:  # the reader raises what it meets
        raise FileError(f"{os.fspath(path)}: not a torch.export program ({type(error).__name__}: {error})") from error


def write_program(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a .pt2 file. Raises FileError."""
    if Path(path).suffix != ".pt2":
        raise FileError(f"{os.fspath(path)}: a torch.export program is written as .pt2")
    try:
        torch.export.save(program, path)
    except (OSError, RuntimeError) as error:
        raise FileError(f"cannot write {os.fspath(path)}: {error}") from error


def layers_of_program(program: ExportedProgram) -> nn.Module:
    """A module that computes what a program does, with a layer for each convolution, batch norm and linear operation.

    A layer has the name that its parameters have in the program, so that the state dicts agree; the values are copies.
    Operations whose weight is computed, used twice or held by the model itself stay operations.
    """
    exported = copy.deepcopy(program).module()
    model = fx.GraphModule(exported, exported.graph)  # that of a program can be neither trained nor evaluated
    uses = Counter(str(node.target) for node in model.graph.nodes if node.op == "get_attr" for _ in node.users)
    for node in list(model.graph.nodes):
        make = _LAYERS.get(node.target) if node.op == "call_function" else None
        given = node.normalized_arguments(model, normalize_to_only_use_kwargs=True) if make else None
        if make is None or given is None:
            continue
        named = given.kwargs
        nodes = {key: value for key, value in named.items() if isinstance(value, fx.Node) and key != "input"}
        name = str(nodes["weight"].target).rpartition(".")[0] if "weight" in nodes else ""
        if not name or any(n.op != "get_attr" or uses[str(n.target)] != 1 for n in nodes.values()):
            continue
        tensors = {key: _attribute(model, str(n.target)) for key, n in nodes.items()}
        if any(str(n.target) != f"{name}.{key}" for key, n in nodes.items()):
            continue
        layer = make(named, tensors)
        if layer is None:
            continue
        holder = model.get_submodule(name)
        for key, tensor in {**dict(holder.named_buffers(recurse=False)), **tensors}.items():
            (layer._parameters if isinstance(tensor, nn.Parameter) else layer._buffers)[key] = tensor  # type: ignore[assignment]
        model.set_submodule(name, layer)
        with model.graph.inserting_before(node):
            call = model.graph.call_module(name, (named["input"],))
        node.replace_all_uses_with(call)
        model.graph.erase_node(node)
    for node in reversed(list(model.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            model.graph.erase_node(node)
    model.recompile()
    return model.eval()


def example_inputs_of(program: ExportedProgram) -> Any:
    """The inputs that the program was exported with.

    Raises:
        TensorError: the file does not hold them.
    """
    if program.example_inputs is None:
        raise TensorError("the program was saved without its example inputs, by which alignment is verified")
    arguments, named = program.example_inputs
    if arguments and named:
        raise TensorError("the program takes positional and named inputs; export it with either")
    return dict(named) if named else tuple(arguments)


def load_into_program(program: ExportedProgram, state: Mapping[str, Tensor]) -> None:
    """Copy the values of a state dict into a program, in place."""
    with torch.no_grad():
        for name, tensor in program.state_dict.items():
            tensor.copy_(state[name])


def _attribute(model: nn.Module, name: str) -> Tensor:
    owner, _, local = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(owner), local)
    return value


def _convolution(named: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module | None:
    weight, groups = tensors["weight"], named.get("groups", 1)
    if weight.dim() != 4 or named.get("transposed", False):
        return None
    return nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        _pair(named.get("stride", 1)),
        named["padding"] if isinstance(named.get("padding"), str) else _pair(named.get("padding", 0)),
        _pair(named.get("dilation", 1)),
        groups,
        bias="bias" in tensors,
        device="meta",
    )


def _pair(value: Any) -> tuple[int, int]:
    sizes = [value] if isinstance(value, int) else list(value)
    return (sizes[0], sizes[-1])


def _batch_norm(named: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module | None:
    if named.get("training") or not {"weight", "bias", "running_mean", "running_var"} <= set(tensors):
        return None
    return nn.BatchNorm2d(len(tensors["weight"]), named["eps"], named["momentum"], device="meta")


def _linear(named: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    outputs, inputs = tensors["weight"].shape
    return nn.Linear(inputs, outputs, bias="bias" in tensors, device="meta")


_LAYERS: dict[Any, Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module | None]] = {
    torch.ops.aten.conv2d.default: _convolution,
    torch.ops.aten.conv2d.padding: _convolution,
    torch.ops.aten.convolution.default: _convolution,
    torch.ops.aten.batch_norm.default: _batch_norm,
    torch.ops.aten.linear.default: _linear,
}
