"""ilwp's own methods: compress as it is, or fine-tune first."""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilwp_plugin.compare.methods import METHODS, Case, Compressed, Method
from ilwp_plugin.compression import CompressedModel, compress
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.method.grid import IntegerTensor
from ilwp_plugin.training import FineTuning, fine_tune
from ilwp_plugin.zoo import scope_layers

__all__ = ["FineTuned", "Ilwp", "describe", "integer_bytes", "raw_sizes"]


class _WithConfig(IlwpConfig):
    """Every field of the configuration, and what a method needs besides."""

    @property
    def config(self) -> IlwpConfig:
        """The configuration alone."""
        return IlwpConfig.from_dict({name: getattr(self, name) for name in IlwpConfig.model_fields})


class IlwpOptions(_WithConfig):
    """Of `Ilwp`."""

    calibration: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0, description="Training images, without labels, for error feedback; 0 is without."
    )


class FineTuneOptions(_WithConfig):
    """Of `FineTuned`."""

    epochs: Annotated[int, Field(strict=True, ge=1)] = Field(default=3, description="Of fine-tuning.")
    lr: Annotated[float, Field(strict=True, gt=0)] = Field(default=0.05, description="Of fine-tuning.")


def describe(config: IlwpConfig) -> str:
    """What distinguishes a configuration, for a table."""
    words = [config.mode]
    if config.residual_step is not None:
        words.append(f"residual step {config.residual_step:g}")
    elif config.bits is not None:
        words.append(f"{config.bits} bits")
    if config.align:
        words.append("aligned")
    if config.weight_step is not None:
        words.append(f"all layers, step {config.weight_step:g}")
    return ", ".join(words)


def integer_bytes(value: IntegerTensor, scale_bytes: int = 4) -> int:
    """Bytes of a tensor in its integer form: codes of 8 bits where they fit, else of 16, scales and zero points."""
    lowest, highest = (int(bound) for bound in value.codes.aminmax()) if value.codes.numel() else (0, 0)
    width = 1 if highest - lowest < 256 or max(-lowest, highest) <= 128 else 2
    points = 0 if value.zero_point is None else value.zero_point.numel()
    return value.codes.numel() * width + scale_bytes * value.scale.numel() + points


def raw_sizes(compressed: CompressedModel, model: nn.Module, scale_bytes: int = 4) -> tuple[int, int]:
    """Bytes of the whole model and of its `scope_layers` before entropy coding: codes in their bits, steps, the rest.

    Args:
        compressed: the model as the file holds it.
        model: of the same layers.
        scale_bytes: of a scale of integer codes.
    """
    sizes = {info.name: info.nbytes for info in compressed.tensors}
    for layer in compressed.layers:
        if layer.bits is not None:
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            sizes[layer.name] = -(-layer.kernels * taps * layer.bits // 8) + 4
    for name, value in compressed.quantized.items():
        sizes[name] = integer_bytes(value, scale_bytes)
    return sum(sizes.values()), sum(sizes[f"{name}.weight"] for name in scope_layers(model))


@METHODS.register("ilwp")
class Ilwp(Method):
    """Compressed as it is, without training."""

    group = "ilwp"
    options: ClassVar[Any] = IlwpOptions

    def title(self, options: IlwpOptions) -> str:
        return f"ilwp {describe(options)}"

    def compress(self, case: Case, options: IlwpOptions) -> Compressed:
        model = case.model()
        calibration = case.calibration(options.calibration) if options.calibration else None
        examples = case.calibration(16)
        compressed = compress(model, options.config, calibration=calibration, example_inputs=examples)
        return Compressed.of(compressed, model, raw_sizes(compressed, model))


@METHODS.register("fine_tune")
class FineTuned(Method):
    """Aligned, trained on with the inter-layer loss and quantized residuals, compressed."""

    group = "ilwp"
    options: ClassVar[Any] = FineTuneOptions

    def title(self, options: FineTuneOptions) -> str:
        return f"ilwp {describe(options)}, {options.epochs} epochs of fine-tuning"

    def compress(self, case: Case, options: FineTuneOptions) -> Compressed:
        model = case.model()
        settings = case.settings
        images, labels = case.data.train_images, case.data.train_labels

        def loss(network: nn.Module, batch: list[Tensor]) -> Tensor:
            return F.cross_entropy(network(batch[0]), batch[1])

        result = fine_tune(
            model,
            TensorDataset(images.contiguous(memory_format=torch.channels_last), labels),
            loss,
            options.config,
            FineTuning(epochs=options.epochs, batch=settings.batch, lr=options.lr, seed=settings.seed),
            example_inputs=images[:16],
            checkpoint=case.folder / "fine_tuning.pt",
        )
        return Compressed.of(result.compressed, copy.deepcopy(model), raw_sizes(result.compressed, model))
