"""What is inserted into the model, and what is read from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from nncf.torch.dynamic_graph.context import no_nncf_trace
from nncf.torch.layer_utils import COMPRESSION_MODULES, StatefulModuleInterface
from nncf.torch.pruning.filter_pruning.layers import FilterPruningMask
from nncf.torch.quantization.layers import BaseQuantizer
from nncf.torch.sparsity.layers import BinaryMask
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.jit import is_tracing  # type: ignore[attr-defined]

from ilwp_plugin.errors import TrainingError
from ilwp_plugin.training import ClosedLoop

__all__ = ["MaskedWeight", "ResidualQuantizer", "operands", "weight_quantizer", "weight_quantizers"]


@COMPRESSION_MODULES.register()
class ResidualQuantizer(nn.Module, StatefulModuleInterface):  # type: ignore[misc]
    """Pre-operation of a convolution: its weight becomes what the file will restore.

    Args:
        number: of the layer in its chain.
        loop: of the chain.
    """

    def __init__(self, number: int, loop: ClosedLoop | None = None) -> None:
        super().__init__()
        self.number, self._loop = number, loop
        self._constant: Tensor | None = None

    @property
    def loop(self) -> ClosedLoop:
        """That of its chain."""
        if self._loop is None:
            raise TrainingError(
                "this residual quantizer has been restored without its chain; restore the model with "
                "create_compressed_model(model, config, compression_state=...)"
            )
        return self._loop

    def remember(self) -> None:
        """Keep the reconstruction for traces, which otherwise would record how it is computed."""
        with torch.no_grad(), no_nncf_trace():
            weight = self.loop.sources[self.number].weight()
            self._constant = self.loop(self.number, weight).detach().clone()

    def forward(self, weight: Tensor) -> Tensor:
        if self._constant is not None and is_tracing():  # type: ignore[no-untyped-call]
            return self._constant
        with no_nncf_trace():
            return self.loop(self.number, weight)

    def get_config(self) -> dict[str, Any]:
        """For NNCF's serialization."""
        return {"number": self.number}

    @classmethod
    def from_config(cls, state: dict[str, Any]) -> ResidualQuantizer:
        """For NNCF's serialization."""
        return cls(state["number"])


class MaskedWeight:
    """The weight of an NNCF convolution as it enters the residual quantizer: with the masks before it applied.

    Args:
        module: the convolution.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def masks(self) -> list[nn.Module]:
        """The masks of sparsity and pruning on the weight."""
        return [op for op in operands(self.module) if isinstance(op, (BinaryMask, FilterPruningMask))]

    @property
    def pruned(self) -> bool:
        """Whether there are any."""
        return bool(self.masks)

    def weight(self) -> Tensor:
        """A `WeightSource`; the gradient goes to the weight, not to masks that are learned."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        masks = self.masks
        if not masks:
            return weight
        with torch.no_grad(), no_nncf_trace():
            kept = weight.detach()
            for mask in masks:
                training = mask.training
                mask.training = False  # in training the masks of rb_sparsity are drawn at random
                kept = mask(weight=kept)[0] if isinstance(mask, FilterPruningMask) else mask(kept)
                mask.training = training
        return weight * (kept != 0)


def operands(module: nn.Module) -> list[nn.Module]:
    """What NNCF runs on the weight of a module before its own forward, in order."""
    operations = getattr(module, "pre_ops", {})
    return [operation.op for operation in operations.values() if hasattr(operation, "op")]


def weight_quantizer(module: nn.Module) -> nn.Module | None:
    """NNCF's own quantizer of a module's weight."""
    return next((op for op in operands(module) if isinstance(op, BaseQuantizer)), None)


def weight_quantizers(stripped: nn.Module) -> Iterator[tuple[str, FakeQuantize]]:
    """torch's quantizers on the weights of a stripped model, by the weight's name in the state dict."""
    for name, module in stripped.named_modules():
        for operation in operands(module):
            if isinstance(operation, FakeQuantize):
                yield f"{name}.weight", operation
