"""ilwp's own methods: compress as it is, or fine-tune first."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from ilwp_plugin.compare.methods import METHODS, Case, Compressed, Method
from ilwp_plugin.compare.training import Distillation, tuning_data
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.format.sections import ArrangedSection, CodebookSection
from ilwp_plugin.pipeline.compress import compress
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.recipes.base import AUTO
from ilwp_plugin.training import FineTuning, fine_tune
from ilwp_plugin.zoo import scope_layers

__all__ = ["FineTuned", "Ilwp", "describe", "integer_bytes", "raw_sizes"]


class _WithConfig(IlwpConfig):
    """Every field of the configuration, and what a method needs besides.

    Fields that are not given are those of the preset `paper`: what a comparison counts apart are the layers of chains.
    Results name what differs from it, and keep their meaning when the package's own defaults change.
    """

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IlwpConfig:
        base = {} if values.get("recipes") is not None else {"preset": "paper"}
        return super().from_dict({**base, **values})

    @property
    def changes(self) -> dict[str, Any]:
        """What differs where nothing is said, as JSON; `from_dict` makes the same of it."""
        plain, mine = self.from_dict({}).model_dump(mode="json"), self.model_dump(mode="json")
        changed = {name: value for name, value in mine.items() if value != plain[name]}
        again = self.from_dict(changed).model_dump(mode="json")  # a preset among them has defaults of its own
        return {name: value for name, value in mine.items() if name in changed or value != again[name]}

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
    lr: Annotated[float, Field(strict=True, gt=0)] | None = Field(
        default=None, description="Of fine-tuning; null is what suits the optimizer, 0.05 for SGD."
    )
    optimizer: Literal["sgd", "adamw"] | None = Field(
        default=None, description="Of fine-tuning; null is SGD, unless a recipe asks for another one."
    )
    calibration: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0, description="Training images, without labels, by which steps are measured and norms follow; 0: none."
    )
    distillation: Distillation = 0.0


def describe(config: IlwpConfig) -> str:
    """What distinguishes a configuration, for a table."""
    if config.recipes is not None:
        return ", ".join(str(recipe["name"]) for recipe in config.recipes)
    words = [config.mode]
    if isinstance(config.residual_step, float):
        words.append(f"residual step {config.residual_step:g}")
    elif config.bits is not None and config.residual_step is None:
        words.append(f"{config.bits} bits")
    if config.align:
        words.append("aligned")
    if config.weight_step is not None:
        step = config.weight_step
        words.append("all layers" if step == AUTO else f"all layers, step {step:g}")
    return ", ".join(words)


def integer_bytes(value: IntegerTensor, scale_bytes: int = 4) -> int:
    """Bytes of a tensor in its integer form: codes of 8 bits where they fit, else of 16, scales and zero points."""
    codes = value.codes
    lowest, highest = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    width = 1 if highest - lowest < 256 or max(-lowest, highest) <= 128 else 2
    points = 0 if value.zero_point is None else value.zero_point.size
    return codes.size * width + scale_bytes * value.scale.size + points


def raw_sizes(compressed: CompressedModel, model: nn.Module, scale_bytes: int = 4) -> tuple[int, int]:
    """Bytes of the whole model and of its `scope_layers` before entropy coding: codes and indices in their bits, steps,
    codebooks, the rest.

    Args:
        compressed: the model as the file holds it.
        model: of the same layers.
        scale_bytes: of a scale of integer codes.
    """
    sizes = {info.name: info.nbytes for info in compressed.tensors}
    for section in compressed.chains:
        for layer in section.layers:
            if layer.quantized is not None:
                sizes[layer.info.name] = -(-layer.quantized.codes.size * layer.quantized.bits // 8) + 4
            elif section.anchor is not None:
                sizes[layer.info.name] = section.anchor.nbytes
    for name, value in compressed.quantized.items():
        sizes[name] = integer_bytes(value, scale_bytes)
    books = 0
    for own in compressed.sections:
        if isinstance(own, CodebookSection | ArrangedSection):
            books += sum(book.nbytes for book in own.books)
            for tensor in own.tensors:
                entries, width = own.books[tensor.book].shape
                bits = (entries - 1).bit_length()
                sizes[tensor.info.name] = -(-tensor.info.numel // width * bits // 8)
    return sum(sizes.values()) + books, sum(sizes[f"{name}.weight"] for name in scope_layers(model))


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
        model = case.model().to(case.device)
        settings = case.settings
        data, loss = tuning_data(case, options.distillation)
        result = fine_tune(
            model,
            data,
            loss,
            options.config,
            FineTuning(
                epochs=options.epochs,
                batch=settings.batch,
                optimizer=options.optimizer,
                lr=options.lr,
                seed=settings.seed,
            ),
            example_inputs=case.data.train_images[:16].to(case.device),
            calibration=case.calibration(options.calibration) if options.calibration else None,
            checkpoint=case.folder / "fine_tuning.pt",
        )
        model.cpu()
        return Compressed.of(result.compressed, copy.deepcopy(model), raw_sizes(result.compressed, model))
