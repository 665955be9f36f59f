"""torch-pruning: its dependency graph tells which parameters are coupled to a layer's channels."""

from .align import align
from .coupling import Coupling

__all__ = ["Coupling", "align", "register"]


def register() -> None:
    """Nothing to enter: torch-pruning has no registry. `align` works on any model."""
