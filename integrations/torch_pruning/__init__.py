"""torch-pruning: its dependency graph tells which parameters are coupled to channels; pruning with provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .align import align
from .coupling import Coupling
from .pruning import IlwpImportance, IlwpPruner, ProvenanceTracker

__all__ = ["Coupling", "IlwpImportance", "IlwpPruner", "ProvenanceTracker", "align", "methods", "register"]

if TYPE_CHECKING:
    from ilwp_plugin.compare.methods import Method


def methods() -> Mapping[str, Method]:
    """torch-pruning's own pruning as methods of `ilwp compare`, by name."""
    from .baselines import METHODS

    return METHODS


def register() -> None:
    """Nothing to enter: torch-pruning has no registry. `align` works on any model."""
