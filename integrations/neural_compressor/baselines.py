"""INC's own quantization, alone and stacked with ilwp, as methods to compare."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from neural_compressor.common.base_config import BaseConfig
from neural_compressor.torch.algorithms.mixed_precision.module_wrappers import HalfPrecisionModuleWrapper
from neural_compressor.torch.quantization import (
    DynamicQuantConfig,
    INT8StaticQuantConfig,
    MixedPrecisionConfig,
    quantize,
)
from pydantic import Field, field_validator
from torch import fx, nn

import ilwp_plugin
from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin.compare.files import as_is, wiped
from ilwp_plugin.compare.methods import Case, Compressed, Method, Options
from ilwp_plugin.compare.own import describe, integer_bytes, raw_sizes
from ilwp_plugin.compare.training import prepared
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.zoo import scope_layers

from .config import IlwpConfig
from .exported import activations, integer_weights, other_tensors
from .stacking import compress_exported, restore_exported, stack

__all__ = ["METHODS", "Dynamic", "MixedPrecision", "Static"]

_ACTIVATION = 5
"""Bytes of the scale and zero point of a quantized activation."""


class Int8Options(Options):
    """Of `Static` and `Dynamic`."""

    images: Annotated[int, Field(strict=True, ge=2)] = Field(
        default=128, description="Training images, without labels, for the ranges of activations."
    )
    ilwp: CoreConfig | None = Field(default=None, description="Of ilwp, which runs first; null is INC alone.")

    @field_validator("ilwp")
    @classmethod
    def _without_overrides(cls, value: CoreConfig | None) -> CoreConfig | None:
        if value is not None and value.overrides:
            raise ConfigError("ilwp.overrides: not in a comparison with INC, whose way is config.set_local(...)")
        return value


class _Int8(Method):
    group = "inc"
    options: ClassVar[Any] = Int8Options
    packages = ("neural-compressor-pt",)
    name: ClassVar[str]
    config: ClassVar[type[BaseConfig]]

    def title(self, options: Int8Options) -> str:
        return f"INC {self.name}" + ("" if options.ilwp is None else f" + ilwp {describe(options.ilwp)}")

    def compress(self, case: Case, options: Int8Options) -> Compressed:
        _quiet()
        model, ilwp = prepared(case, options.ilwp)
        configs: list[BaseConfig] = [self.config()]
        if ilwp is not None:
            configs.insert(0, IlwpConfig.from_core(ilwp))
        graph = stack(model, configs, case.calibration(options.images))

        def restore(path: Path) -> nn.Module:
            stored = ilwp_plugin.load(path)
            blank = torch.zeros_like(case.calibration(2))
            about = stored.metadata["neural_compressor"]
            return restore_exported(stored, about, wiped(case.model()), blank, str(path))

        return Compressed(*_graph_bytes(graph, case.fresh()), compress_exported(graph).save, restore)


def _graph_bytes(graph: fx.GraphModule, model: nn.Module) -> tuple[int, int]:
    """Bytes of the graph and of its depthwise layers: int8 codes, scales, everything else as it is."""
    weights = integer_weights(graph)
    sizes = {name: integer_bytes(weight.value) for name, weight in weights.items()}
    sizes.update({name: tensor.nbytes for name, tensor in other_tensors(graph, weights).items()})
    depthwise = sum(sizes[f"{name}.weight"] for name in scope_layers(model))
    return sum(sizes.values()) + _ACTIVATION * len(activations(graph)[0]), depthwise


class Static(_Int8):
    """INT8 of weights and activations, with ranges from training images; INC's defaults.

    The file holds the integer codes of all convolutions and linear layers, entropy coded. With ilwp it holds ilwp's
    integers where INC's follow from them and that is smaller.
    """

    name = "static INT8"
    config = INT8StaticQuantConfig


class Dynamic(_Int8):
    """INT8 of weights, and of activations with ranges that are found while it runs; INC's defaults.

    The file is like that of `Static`.
    """

    name = "dynamic INT8"
    config = DynamicQuantConfig


class HalfOptions(Options):
    """Of `MixedPrecision`."""

    dtype: Literal["fp16", "bf16"] = Field(default="fp16", description="Of convolutions and linear layers.")


class MixedPrecision(Method):
    """Convolutions and linear layers in 16 bits, batch norms in fp32.

    There are no integers: the file holds the 16-bit tensors as they are, without entropy coding.
    """

    group = "inc"
    options: ClassVar[Any] = HalfOptions
    packages = ("neural-compressor-pt",)

    def title(self, options: HalfOptions) -> str:
        return f"INC {options.dtype}"

    def compress(self, case: Case, options: HalfOptions) -> Compressed:
        _quiet()
        model = quantize(case.model(), MixedPrecisionConfig(dtype=options.dtype))
        halved = {name for name, module in model.named_modules() if isinstance(module, HalfPrecisionModuleWrapper)}
        dtype = torch.float16 if options.dtype == "fp16" else torch.bfloat16
        state = {n: t.to(dtype) if n.rpartition(".")[0] in halved else t for n, t in case.model().state_dict().items()}
        compressed = as_is(state)

        def restore(path: Path) -> nn.Module:
            plain = wiped(case.model())
            plain.load_state_dict(ilwp_plugin.load(path).state_dict())
            restored: nn.Module = quantize(plain, MixedPrecisionConfig(dtype=options.dtype))
            return restored.eval()

        return Compressed(*raw_sizes(compressed, case.fresh()), compressed.save, restore)


def _quiet() -> None:
    logging.getLogger("neural_compressor").setLevel(logging.ERROR)


METHODS: Mapping[str, Method] = {"static": Static(), "dynamic": Dynamic(), "mixed_precision": MixedPrecision()}
"""By their names in a comparison, behind `inc.`."""
