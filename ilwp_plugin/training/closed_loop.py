"""Closed-loop residual quantization one layer at a time, for toolkits that hook into weights while a model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.layer_quantizer import quantize_layer
from ilwp_plugin.method.quantization import KernelPool, as_kernels, reconstruct, stored_anchor, straight_through
from ilwp_plugin.method.rounding import naming

__all__ = ["ClosedLoop", "WeightSource", "restore_layer"]


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
        self._layers = list(layers)
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
        kernels = as_kernels(weight, weight.shape[-2] * weight.shape[-1])
        earlier = KernelPool.of([self._restored[i] for i in range(number)], kernels.shape[1], kernels.device)
        with naming(f"layer {self._layers[number]!r}"):
            return restore_layer(kernels, weight.dtype, earlier, self._configs[number])


def restore_layer(
    kernels: Tensor, dtype: torch.dtype, pool: KernelPool, config: IlwpConfig, references: Tensor | None = None
) -> Tensor:
    """A layer as the file restores it.

    Args:
        kernels: (kernels, taps) float32.
        dtype: of the weight.
        pool: the earlier layers, as they are restored; empty for an anchor.
        config: of the layer.
        references: given ones, see `quantize_layer`.

    Returns:
        (kernels, taps) float32.
    """
    if not pool.layers:
        anchor = stored_anchor(kernels, dtype, config.anchor)
        if anchor is not None:
            return anchor.float()
    return reconstruct(quantize_layer(kernels, pool, config, references), pool.filled)
