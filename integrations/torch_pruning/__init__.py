"""torch-pruning: its dependency graph tells which parameters are coupled to channels; pruning with provenance."""

from .align import align
from .coupling import Coupling
from .pruning import IlwpImportance, IlwpPruner, ProvenanceTracker

__all__ = ["Coupling", "IlwpImportance", "IlwpPruner", "ProvenanceTracker", "align", "register"]


def register() -> None:
    """Nothing to enter: torch-pruning has no registry. `align` works on any model."""
