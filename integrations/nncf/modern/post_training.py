"""Models that NNCF 3 has quantized after training: into a file without a controller, and back out of it."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from nncf.torch.function_hook.hook_storage import decode_hook_name
from nncf.torch.function_hook.wrapper import ATR_HOOK_STORAGE, get_hook_storage, is_wrapped, wrap_model
from nncf.torch.quantization.layers import (
    BaseWeightsDecompressor,
    INT8AsymmetricWeightsDecompressor,
    INT8SymmetricWeightsDecompressor,
)
from torch import Tensor, nn

from ilwp_plugin import CompressedModel, IntegerTensor, load
from ilwp_plugin.errors import ConfigError, FormatError, TensorError
from ilwp_plugin.models.tensors import integers_of, restored

from ..quantizers import read_description
from ..saving import codes_of, metadata_of
from .hooks import weight_hooks
from .stripping import remember_weights, strip, stripped, unwrapped

__all__ = ["plain_model", "restore"]

_DECOMPRESSORS = (INT8AsymmetricWeightsDecompressor, INT8SymmetricWeightsDecompressor)


@torch.no_grad()
def plain_model(
    model: nn.Module, example_inputs: Any = None
) -> tuple[nn.Module, dict[str, IntegerTensor], dict[str, Any]]:
    """The network inside a model that `nncf.quantize`, `nncf.prune`, `nncf.compress_weights` or `nncf.strip` returned.

    Args:
        model: the model; it stays as it is.
        example_inputs: an input; needed where weights are quantized that belong to no module.

    Returns:
        The plain network, whose weights are what the model computes with; the codes of those that are quantized; and
        the metadata by which `restore` makes the model again.

    Raises:
        ConfigError: the model trains with ilwp, or has weights of 4 bits.
    """
    if not is_wrapped(model):
        return model, {}, {}
    if weight_hooks(model):
        raise ConfigError(
            "ilwp is in the model already; the file is that of its controller: controller.save_ilwp(path)"
        )
    found = stripped(strip(copy.deepcopy(model), example_inputs))
    decompressors = _decompressors(found.model)
    packed = {key: _integers(found.model.get_parameter(key), hook) for key, (_, hook) in decompressors.items()}
    kinds = [
        [name, key, isinstance(hook, INT8SymmetricWeightsDecompressor), str(hook.result_dtype).removeprefix("torch.")]
        for key, (name, hook) in decompressors.items()
    ]
    more = {"decompressors": kinds} if kinds else {}
    codes = codes_of(found, ())
    metadata = metadata_of(type(found)(found.model, found.network, found.weights, more), codes)
    plain = unwrapped(found.model)
    for key, value in packed.items():
        owner, _, role = key.rpartition(".")
        hook = decompressors[key][1]
        weight = restored(value).to(hook.result_dtype or torch.float32)
        plain.get_submodule(owner)._parameters[role] = nn.Parameter(weight, requires_grad=False)
    for key, value in codes.items():
        parameter = plain.get_parameter(key)
        parameter.data = restored(value).to(parameter)
    return plain, {**codes, **packed}, metadata


@torch.no_grad()
def restore(file: CompressedModel | str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """The model that a file comes from, as NNCF stripped it: with the quantizers of its weights and activations.

    Args:
        file: of a model that NNCF has quantized, or its path; of any other one, this is `file.restore_weights(model)`.
        model: as its class makes it; it is changed in place.

    Returns:
        The model, in eval mode.

    Raises:
        TensorError: the file does not fit the model, or comes from NNCF 2.
        FormatError: the metadata of the file are damaged.
    """
    file = file if isinstance(file, CompressedModel) else load(file)
    quantizers, more = read_description(file)
    foreign = [q.path for q in quantizers if not q.path.startswith(f"{ATR_HOOK_STORAGE}.")]
    if foreign:
        raise TensorError(
            f"the file comes from NNCF 2, which has put {foreign[0]!r} into the model; restore it there, "
            "or take file.restore_weights(model), the weights alone"
        )
    file.restore_weights(model)
    if not quantizers and not more:
        return model.eval()
    wrap_model(model)
    storage = get_hook_storage(model)
    for quantizer in quantizers:
        storage.insert_hook_by_name(quantizer.path.removeprefix(f"{ATR_HOOK_STORAGE}."), quantizer.module(file))
    remember_weights(model, {q.weight: q.path for q in quantizers if q.weight is not None})
    try:
        packed = [(str(name), str(key), bool(symmetric), str(dtype)) for name, key, symmetric, dtype in _listed(more)]
    except (TypeError, ValueError) as error:
        raise FormatError(f"the quantizers in the metadata of the file are damaged: {error}") from None
    for name, key, symmetric, dtype in packed:
        if key not in file.quantized:
            raise TensorError(f"the file does not hold the codes of {key!r}")
        weight, hook = _decompressor(file.quantized[key], symmetric, None if dtype == "None" else getattr(torch, dtype))
        owner, _, role = key.rpartition(".")
        model.get_submodule(owner)._parameters[role] = nn.Parameter(weight, requires_grad=False)
        storage.insert_hook_by_name(name, hook)
    return model.eval()


def _listed(more: Mapping[str, Any]) -> list[Any]:
    return list(more.get("decompressors", []))


def _decompressors(model: nn.Module) -> dict[str, tuple[str, Any]]:
    """Names and hooks that make weights of 8-bit codes, by the key of the weight."""
    found: dict[str, tuple[str, Any]] = {}
    for name, hook in get_hook_storage(model).named_hooks():
        if isinstance(hook, _DECOMPRESSORS):
            found[decode_hook_name(name)[1]] = name, hook
        elif isinstance(hook, BaseWeightsDecompressor):
            raise ConfigError(
                f"{name}: weights of 4 bits with scales for groups have no place in a file; use an int8 mode of "
                "nncf.compress_weights, or nncf.strip(model, strip_format=nncf.StripFormat.IN_PLACE) before"
            )
    return found


def _integers(weight: Tensor, hook: Any) -> IntegerTensor:
    """Codes and scales of a weight; NNCF's symmetric scales may be negative, ours are not."""
    codes, scale = weight.detach().to(torch.int16), hook._scale.float()
    axis = next((dimension for dimension, size in enumerate(scale.shape) if size > 1), 0)
    zero_point = getattr(hook, "_zero_point", None)
    if zero_point is not None:
        return integers_of(codes, scale.flatten(), zero_point.flatten().to(torch.int16), axis)
    return integers_of(torch.where(scale < 0, -codes, codes), scale.abs().flatten(), None, axis)


def _decompressor(value: IntegerTensor, symmetric: bool, dtype: torch.dtype | None) -> tuple[Tensor, nn.Module]:
    """The inverse; the sign of a scale is free but for the code 128, which int8 has with a minus only."""
    shape = [1] * value.codes.ndim
    shape[value.axis] = value.scale.size
    codes, scale = torch.from_numpy(value.codes), torch.from_numpy(value.scale).reshape(shape)
    if symmetric:
        others = [dimension for dimension in range(codes.dim()) if shape[dimension] == 1]
        negative = codes.amax(others, keepdim=True) > torch.iinfo(torch.int8).max
        codes, scale = torch.where(negative, -codes, codes), torch.where(negative, -scale, scale)
        return codes.to(torch.int8), INT8SymmetricWeightsDecompressor(scale, dtype)
    points = torch.zeros(shape) if value.zero_point is None else torch.from_numpy(value.zero_point).reshape(shape)
    return codes.to(torch.uint8), INT8AsymmetricWeightsDecompressor(scale, points.to(torch.uint8), dtype)
