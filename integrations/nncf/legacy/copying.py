"""Copies of models in training, which NNCF cannot make of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nncf.common.utils import backend
from torch import Tensor, nn

__all__ = ["copy_model"]


def copy_model(model: nn.Module) -> nn.Module:
    """NNCF's copy of a model, also of one that keeps results with gradient, which torch refuses to copy.

    Masks of rb_sparsity and the loss of knowledge distillation do. The copy gets the values alone.
    """
    with _results_without_gradient():
        copied: nn.Module = backend.copy_model(model)
    return copied


@contextmanager
def _results_without_gradient() -> Iterator[None]:
    original = Tensor.__deepcopy__

    def copied(self: Tensor, memo: dict[int, Any]) -> Any:
        if self.is_leaf:
            return original(self, memo)  # type: ignore[no-untyped-call]
        return memo.setdefault(id(self), self.detach().clone())

    Tensor.__deepcopy__ = copied  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.__deepcopy__ = original  # type: ignore[method-assign]
