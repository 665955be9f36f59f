"""What another package could add: a recipe with a section of its own, a coder, a step rule and a prediction mode.

Importing it registers them. Nothing in the package knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ilwp_plugin.format import SECTIONS, Context, Section, Summary, TensorInfo, cast
from ilwp_plugin.format.coding import CODERS, Coder, Histogram, Run, Segment, Symbols
from ilwp_plugin.format.sections.base import read_info
from ilwp_plugin.format.stream import ByteReader, ByteWriter
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.method.prediction import PREDICTORS, Predictor, Report, collocated_references
from ilwp_plugin.method.quantization import STEP_RULES
from ilwp_plugin.recipes import RECIPES, Options, WeightRecipe


@SECTIONS.register("signs")
class SignSection(Section):
    """Tensors of two values each: a sign for every weight, and one magnitude."""

    number = 70
    name = "signs"

    def __init__(self, infos: Sequence[TensorInfo], values: Mapping[str, tuple[NDArray[np.bool_], float]]) -> None:
        self.infos, self.values = list(infos), dict(values)

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.infos]

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        for info in self.infos:
            negative, magnitude = self.values[info.name]
            with writer.charge(self.part, info.name):
                writer.varint(position[info.name])
                writer.f32(magnitude)
                writer.raw(np.packbits(negative).tobytes())

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> SignSection:
        infos, values = [], {}
        while reader.remaining:
            with reader.charge_later() as entry:
                info = read_info(reader, context.directory, "a section of signs")
                entry.account = (cls.part, info.name)
                magnitude = reader.f32()
                packed = np.frombuffer(reader.raw((info.numel + 7) // 8), np.uint8)
                values[info.name] = (np.unpackbits(packed, count=info.numel).astype(bool), magnitude)
            infos.append(info)
        return cls(infos, values)

    def restore(self, name: str) -> NDArray[Any]:
        info = next(info for info in self.infos if info.name == name)
        negative, magnitude = self.values[name]
        size = np.float32(magnitude)
        return cast(np.where(negative, -size, size).astype(np.float32), info.dtype).reshape(info.shape)

    def summaries(self) -> list[Summary]:
        return [Summary(i.name, self.name, i.shape, {"magnitude": self.values[i.name][1]}) for i in self.infos]


class SignOptions(Options):
    """Of `Signs`."""

    gain: Annotated[float, Field(strict=True, gt=0)] = Field(default=1.0, description="Of the mean magnitude.")


@RECIPES.register("signs")
class Signs(WeightRecipe):
    """Every weight becomes plus or minus the mean magnitude of its layer."""

    name: ClassVar[str] = "signs"
    options_type: ClassVar[type[Options]] = SignOptions
    options: SignOptions

    def quantize(self, key: str, weight: Tensor, step: float | None, feedback: Feedback | None) -> tuple[Any, Tensor]:
        magnitude = weight.float().abs().mean() * self.options.gain
        negative = weight < 0
        stored = (negative.cpu().numpy().ravel(), float(magnitude))
        return stored, torch.where(negative, -magnitude, magnitude)

    def sections(self, entries: Sequence[tuple[TensorInfo, Any]]) -> Sequence[Section]:
        return [SignSection([info for info, _ in entries], {info.name: value for info, value in entries})]


class Wide(Coder):
    """Two bytes a symbol."""

    id = 25
    density = 1

    def fit(self, run: Run) -> None:
        return None

    def table(self, model: None) -> bytes:
        return b""

    def read_table(self, reader: ByteReader) -> None:
        return None

    def bits(self, model: None, histogram: Histogram) -> int:
        return 16 * int(histogram.counts.sum())

    def encode(self, model: None, symbols: Symbols, segments: Sequence[Segment]) -> bytes:
        return symbols.astype("<i2").tobytes()

    def decode(self, model: None, payload: memoryview, segments: Sequence[Segment], reader: ByteReader) -> Symbols:
        count = sum(segment.count for segment in segments)
        self.bound(payload, count, reader)
        return np.frombuffer(payload, "<i2", count).astype(np.int16)


CODERS.register("wide")(Wide())


@STEP_RULES.register("halved")
def step_by_half_of_the_largest(residual: Tensor, largest: int) -> Tensor:
    """Clips everything above half of the largest magnitude."""
    return residual.abs().max() / (2 * largest)


class _Mirrored(Predictor):
    """The kernels of the layer before, in the opposite order."""

    def references(self, kernels: Tensor, earlier: Sequence[Tensor], report: Report | None = None) -> Tensor:
        return collocated_references(len(kernels), [len(layer) for layer in earlier]).flip(0)


PREDICTORS.register("mirrored")(_Mirrored())
