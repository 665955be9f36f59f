"""What anyone has without a toolkit: the tensors as they are, or rounded to 16 or 8 bits, and zstd."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from ilwp_plugin._imports import optional
from ilwp_plugin.compare.methods import METHODS, Case, Compressed, Method, Options, tensor_bytes
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.models.tensors import integers_of, restored
from ilwp_plugin.zoo import scope_layers

__all__ = ["Float32", "Zstd", "depthwise_bytes", "int8_weights"]

_SCALE = ".scale"


def depthwise_bytes(model: nn.Module, bits: int, per_channel: int = 0) -> int:
    """Of the weights of depthwise layers, with so many bits a weight, and bytes a channel besides."""
    weights = [layer.weight for layer in scope_layers(model).values()]
    return sum(weight.numel() * bits // 8 + per_channel * len(weight) for weight in weights)


def _from_state(case: Case, state: Mapping[str, Tensor]) -> nn.Module:
    model = case.fresh()
    model.load_state_dict(state)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@METHODS.register("fp32")
class Float32(Method):
    """The state dict as a safetensors file."""

    group = "baseline"

    def title(self, options: Options) -> str:
        return "fp32"

    def compress(self, case: Case, options: Options) -> Compressed:
        model = case.model()
        content = save_safetensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()})

        def restore(path: Path) -> nn.Module:
            return _from_state(case, load_safetensors(path.read_bytes()))

        def save(path: Path) -> None:
            path.write_bytes(content)

        return Compressed(tensor_bytes(model.state_dict()), depthwise_bytes(model, 32), save, restore)


class ZstdOptions(Options):
    """Of `Zstd`."""

    dtype: Literal["fp32", "fp16", "int8"] = Field(default="fp32", description="What the weights are rounded to.")
    level: int = Field(default=19, ge=1, le=22, description="Of zstd.")


@METHODS.register("zstd")
class Zstd(Method):
    """A safetensors file under zstd; in int8 the weights of convolutions and linear layers have a scale a channel."""

    group = "baseline"
    options: ClassVar[Any] = ZstdOptions

    def title(self, options: ZstdOptions) -> str:
        return f"{options.dtype} + zstd -{options.level}"

    def compress(self, case: Case, options: ZstdOptions) -> Compressed:
        zstandard = optional("zstandard", "compare")
        model = case.model()
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        depthwise = depthwise_bytes(model, {"fp32": 32, "fp16": 16, "int8": 8}[options.dtype])
        if options.dtype == "int8":
            for name, value in int8_weights(model).items():
                state[name] = torch.from_numpy(value.codes).to(torch.int8)
                state[name + _SCALE] = torch.from_numpy(value.scale)
            depthwise = depthwise_bytes(model, 8, per_channel=4)
        elif options.dtype == "fp16":
            state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
        raw = tensor_bytes(state)
        content = zstandard.ZstdCompressor(level=options.level).compress(save_safetensors(state))

        def restore(path: Path) -> nn.Module:
            loaded = load_safetensors(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
            scales = {name.removesuffix(_SCALE): loaded.pop(name) for name in [*loaded] if name.endswith(_SCALE)}
            loaded.update({name: restored(integers_of(loaded[name], scale)) for name, scale in scales.items()})
            return _from_state(case, {name: t.float() if t.is_floating_point() else t for name, t in loaded.items()})

        def save(path: Path) -> None:
            path.write_bytes(content)

        return Compressed(raw, depthwise, save, restore)


def int8_weights(model: nn.Module) -> dict[str, IntegerTensor]:
    """Weights of convolutions and linear layers as 8-bit codes, symmetric, the largest of each channel at 127."""
    found: dict[str, IntegerTensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.detach()
            scale = (weight.flatten(1).abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            codes = torch.round(weight / scale.reshape(-1, *[1] * (weight.dim() - 1)))
            found[f"{name}.weight"] = integers_of(codes.to(torch.int8), scale)
    return found
