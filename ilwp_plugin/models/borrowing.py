"""A model of the user's that runs in place for a while, and is as it was afterwards.

Nothing is moved to another device, and no copy is needed: layers whose forward is patched on the instance, or that
cannot be copied, run as they are.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin.errors import TensorError
from ilwp_plugin.models.chains import evaluating

__all__ = ["borrowed", "copied", "holding", "on_cpu", "own_tensors", "place_of"]

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Eval mode without compiled code inside the `with` block; afterwards buffers are what they were, too."""
    with _ONE_AT_A_TIME, ExitStack() as stack, evaluating(model):
        compiled = [m for m in model.modules() if vars(m).get("_compiled_call_impl") or hasattr(m, "_orig_mod")]
        if compiled and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        scripted = torch.jit.ScriptModule  # has no dict of buffers that could be changed
        modules = [module for module in model.modules() if module._buffers and not isinstance(module, scripted)]
        saved = [(module._buffers, dict(module._buffers)) for module in modules]
        values = [(tensor, tensor.detach().clone()) for tensor in model.buffers()]
        try:
            yield
        finally:
            for own, before in saved:
                own.update(before)
            for tensor, value in values:
                if not tensor.is_meta and not torch.equal(tensor, value):
                    tensor.copy_(value)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module itself, without those of modules inside it."""
    return {key: t for own in (module._parameters, module._buffers) for key, t in own.items() if t is not None}


def place_of(tensor: Tensor) -> Any:
    """Equal for tensors that are the same values in memory."""
    if tensor.numel() == 0 or tensor.is_meta:
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


@contextmanager
def holding(module: nn.Module, values: Mapping[Any, Tensor]) -> Iterator[None]:
    """Inside the `with` block a module computes with other tensors, given by the places of its own."""
    changed: list[tuple[dict[str, Any], str, Tensor]] = []
    holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for own in holders:
        for key, tensor in own.items():
            if tensor is not None and (value := values.get(place_of(tensor))) is not None:
                changed.append((own, key, tensor))
                own[key] = value
    try:
        yield
    finally:
        for own, key, tensor in changed:
            own[key] = tensor


def on_cpu(module: nn.Module) -> nn.Module:
    """A layer with its own tensors on the CPU; it is not to run."""
    found = copy.copy(module)
    for name in ("_parameters", "_buffers"):
        own = getattr(module, name)
        found.__dict__[name] = {key: None if t is None else t.detach().cpu() for key, t in own.items()}
    return found


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model with computed tensors as attributes (those of masks, say).

    Raises:
        TensorError: it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # what a model holds can refuse in any way
        reason = " ".join(str(error).split())
        raise TensorError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {reason}); remove what cannot be from "
            "its attributes, or define __deepcopy__"
        ) from error
