"""Tensors into a model, also into one that has no values yet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin.errors import TensorError

__all__ = ["load_tensors"]


def load_tensors(model: nn.Module, state: dict[str, Any]) -> None:
    """Load a state dict whose names and shapes are those of the model.

    A model on the meta device takes copies of the tensors, on their device; it shares what it shared before.

    Args:
        model: is changed in place.
        state: as `state_dict()` of the model gives it, with the versions of its modules; is changed, too.

    Raises:
        TensorError: the model has tensors on the meta device that no state dict holds, or such as cannot be written to;
            it is as it was.
    """
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if not empty:
        if frozen := [name for name, tensor in tensors if tensor.is_inference() and name in state]:
            raise TensorError(
                f"{frozen[0]!r} of {type(model).__name__} was made under torch.inference_mode(), and cannot be written "
                "to; make the model outside of it"
            )
        for _, tensor in tensors:
            if _overlaps(tensor):
                tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        model.load_state_dict(state)
        return
    if lacking := [name for name in empty if name not in state]:
        raise TensorError(
            f"{type(model).__name__} is on the meta device, and {lacking[0]!r} is in no file: it is a buffer that is "
            "not persistent; make the model on a device that has values"
        )
    shared: dict[int, list[str]] = {}
    for name, tensor in tensors:
        shared.setdefault(id(tensor), []).append(name)
    once: set[int] = set()
    for name, tensor in state.items():
        if id(tensor) in once:
            state[name] = tensor.clone()  # what the file shares is not shared by this model, unless the next lines do
        once.add(id(tensor))
    model.load_state_dict(state, assign=True)
    for first, *others in shared.values():
        for name in others:
            own, local = _holder(model, first)
            holder, other = _holder(model, name)
            holder[other] = own[local]


def _overlaps(tensor: Tensor) -> bool:
    """Whether several elements are one in memory, as `expand` makes them: no value can be copied there."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() > span


def _holder(model: nn.Module, name: str) -> tuple[dict[str, Tensor | None], str]:
    path, _, local = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if local in module._parameters else module._buffers), local  # type: ignore[return-value]
