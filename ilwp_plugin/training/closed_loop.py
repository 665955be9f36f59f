"""Closed-loop residual quantization one layer at a time, for toolkits that hook into weights while a model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.method.prediction import PREDICTORS
from ilwp_plugin.method.quantization import (
    BITS,
    STEP_RULES,
    as_kernels,
    quantize_layer,
    reconstruct,
    stored_anchor,
    straight_through,
)

__all__ = ["ClosedLoop", "WeightSource"]


class WeightSource(Protocol):
    """Where a layer's weight is found outside a forward pass."""

    @property
    def pruned(self) -> bool:
        """Whether masks set some of it to 0."""
        ...

    def weight(self) -> Tensor:
        """The weight as the quantizer sees it in evaluation: the parameter with all masks applied."""
        ...


class ClosedLoop:
    """The reconstruction of one chain, layer by layer as a forward pass calls them.

    A layer is predicted from what the layers before it were reconstructed to *in the same pass*, so masks that are
    drawn anew in each pass are followed exactly. A layer that has not been called in this pass (another execution
    order, a part of the model alone) is taken from its source.

    Weights that are 0 stay 0.

    Args:
        config: `bits` must not be None.
        layers: of the chain, in order.
        sources: of their weights.

    Attributes:
        enabled: False passes weights through.
    """

    def __init__(self, config: IlwpConfig, layers: Sequence[str], sources: Sequence[WeightSource]) -> None:
        if config.bits is None:
            raise ConfigError("bits: None quantizes nothing; set bits to 2..8")
        self.config = config
        self._configs = [config.for_layer(layer) for layer in layers]
        self.sources = list(sources)
        self.enabled = True
        self._restored: dict[int, Tensor] = {}
        self._called: set[int] = set()

    def __call__(self, number: int, weight: Tensor) -> Tensor:
        """The reconstruction of a layer's weight; the gradient goes straight through to the weight.

        Args:
            number: of the layer in the chain, from 0.
            weight: of the layer as it enters the quantizer.
        """
        if not self.enabled:
            return weight
        if number in self._called:  # a new pass has begun: what is known may be outdated
            self._restored, self._called = {}, set()
        self._called.add(number)
        return straight_through(weight, self._restore(number, weight))

    def reconstructed(self) -> list[Tensor]:
        """The layers' reconstructed weights in evaluation, from their sources."""
        self._restored, self._called = {}, set()
        return [self._restore(number, source.weight()) for number, source in enumerate(self.sources)]

    @torch.inference_mode(False)  # what a pass in inference mode leaves here has to serve training too
    @torch.no_grad()
    def _restore(self, number: int, weight: Tensor) -> Tensor:
        for earlier in range(number):
            if earlier not in self._restored:
                self._restored[earlier] = self._reconstruct(earlier, self.sources[earlier].weight())
        self._restored[number] = self._reconstruct(number, weight)
        return self._restored[number].to(weight.dtype).reshape(weight.shape)

    def _reconstruct(self, number: int, weight: Tensor) -> Tensor:
        """(kernels, taps) float32, from the reconstructed layers before it."""
        config = self._configs[number]
        assert config.bits is not None
        kernels = as_kernels(weight, weight.shape[-2] * weight.shape[-1])
        if number == 0:
            anchor = stored_anchor(kernels, weight.dtype, config.anchor)
            if anchor is not None:
                return anchor.float()
            references, pool = torch.full((len(kernels),), -1, dtype=torch.int64), kernels[:0]
        else:
            earlier = [self._restored[i] for i in range(number)]
            references, pool = PREDICTORS[config.mode].references(kernels, earlier), torch.cat(earlier)
        bits, rule = config.bits, STEP_RULES[config.range]
        if config.residual_step is not None:
            step = torch.tensor(config.residual_step, dtype=torch.float32)
            bits, rule = BITS[-1], lambda *_: step
        return reconstruct(quantize_layer(kernels, references, pool, bits, rule), pool)
