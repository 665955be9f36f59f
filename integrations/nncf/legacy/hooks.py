"""What is inserted into the model, and what is read from it."""

from __future__ import annotations

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
from ilwp_plugin.training import Session

__all__ = [
    "MaskedWeight",
    "WeightHook",
    "operands",
    "remove_hooks",
    "weight_hooks",
    "weight_quantizer",
    "weight_quantizers",
]


@COMPRESSION_MODULES.register()
class WeightHook(nn.Module, StatefulModuleInterface):  # type: ignore[misc]
    """Pre-operation of a layer: its weight becomes what the file will restore.

    Args:
        key: of the weight.
        session: of the model.
        trained: what a recipe trains beside the weights; the hook holds it for the optimizer.
    """

    def __init__(self, key: str, session: Session | None = None, trained: list[nn.Parameter] | None = None) -> None:
        super().__init__()
        self.key, self._session = key, session
        self.trained = nn.ParameterList(trained or [])
        self._constant: Tensor | None = None

    @property
    def session(self) -> Session:
        """Of the model."""
        if self._session is None:
            raise TrainingError(
                f"the hook on {self.key!r} has been restored without its model; restore it with "
                "create_compressed_model(model, config, compression_state=...)"
            )
        return self._session

    def remember(self) -> None:
        """Keep the restored weight for traces, which otherwise would record how it is computed."""
        parts = self.session.parts
        with torch.no_grad(), no_nncf_trace():
            self._constant = parts.weight(self.key, parts.sources[self.key].weight()).detach().clone()

    def forward(self, weight: Tensor) -> Tensor:
        if self._constant is not None and is_tracing():  # type: ignore[no-untyped-call]
            return self._constant
        with no_nncf_trace():
            return self.session.parts.weight(self.key, weight)

    def get_config(self) -> dict[str, Any]:
        """For NNCF's serialization."""
        return {"key": self.key}

    @classmethod
    def from_config(cls, state: dict[str, Any]) -> WeightHook:
        """For NNCF's serialization."""
        return cls(state["key"])


class MaskedWeight:
    """The weight of a module of NNCF as it enters our hook: with the masks before it applied.

    Args:
        module: the layer.
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


def weight_hooks(model: nn.Module) -> dict[str, WeightHook]:
    """Ours, by key."""
    found = (op for module in model.modules() for op in operands(module) if isinstance(op, WeightHook))
    return {hook.key: hook for hook in found}


def remove_hooks(model: nn.Module) -> None:
    """Remove ours."""
    for module in model.modules():
        operations: Any = getattr(module, "pre_ops", {})
        for key, operation in list(operations.items()):
            if isinstance(getattr(operation, "op", None), WeightHook):
                del operations[key]


def weight_quantizer(module: nn.Module) -> nn.Module | None:
    """NNCF's own quantizer of a module's weight."""
    return next((op for op in operands(module) if isinstance(op, BaseQuantizer)), None)


def weight_quantizers(stripped: nn.Module) -> dict[str, str]:
    """Paths of torch's quantizers on the weights of a stripped model, by the key of the weight."""
    return {
        f"{name}.weight": f"{name}.pre_ops.{key}.op" if name else f"pre_ops.{key}.op"
        for name, module in stripped.named_modules()
        for key, operation in getattr(module, "pre_ops", {}).items()
        if isinstance(getattr(operation, "op", None), FakeQuantize)
    }
