"""Tensors that a toolkit has quantized already: stored as their codes, without loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ilwp_plugin.errors import TensorError, nearest
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.format.sections import GridSection, Section
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.models.chains import is_real
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.tensors import restored
from ilwp_plugin.recipes.base import AUTO, Claims, Options, Request, TrainingPart, WeightRecipe

__all__ = ["Given"]


class Given(WeightRecipe):
    """In no configuration: `compress(..., quantized=...)` puts it before all others.

    Args:
        values: by name of tensor or layer.
    """

    name: ClassVar[str] = "quantized"
    options_type: ClassVar[type[Options]] = Options

    def __init__(self, values: Mapping[str, IntegerTensor], coder: str = AUTO) -> None:
        super().__init__(Options(coder=coder))
        self._values = dict(values)
        self._codes: dict[str, IntegerTensor] = {}

    def claim(self, network: Network, free: Collection[str], request: Request) -> Claims:
        for name, value in self._values.items():
            key = name if name in network.state else f"{name}.weight"
            if key not in network.state:
                raise TensorError(f"quantized: no tensor {name!r} in the state dict; {nearest(name, network.state)}")
            self._check(name, network.state[key].detach().cpu(), value)
            self._codes[key] = value
        return Claims(tuple(self._codes))

    @staticmethod
    def _check(name: str, tensor: Tensor, value: IntegerTensor) -> None:
        """Raises TensorError where the codes do not restore the tensor bit for bit."""
        if not is_real(tensor) or tuple(tensor.shape) != tuple(value.codes.shape) or not tensor.numel():
            raise TensorError(
                f"quantized: {name!r} is {tuple(tensor.shape)} {tensor.dtype}, its codes are {tuple(value.codes.shape)}"
            )
        stored = restored(value).to(tensor.dtype)
        if not torch.equal(stored, tensor):
            error = float((stored.double() - tensor.double()).abs().max())
            raise TensorError(
                f"quantized: {name!r} is not (codes - zero_point) * scale in float32: the largest difference is "
                f"{error:.3g}; set the tensor to what its codes restore to, or leave it out"
            )

    def quantize(self, key: str, weight: Tensor, step: float | None, feedback: Feedback | None) -> tuple[Any, Tensor]:
        return self._codes[key], weight

    def sections(self, entries: Sequence[tuple[TensorInfo, Any]]) -> Sequence[Section]:
        infos, values = zip(*entries, strict=True)
        return [GridSection(tuple(infos), tuple(values), self.options.coder)]

    def train(self, *_: Any) -> TrainingPart | None:
        return None
