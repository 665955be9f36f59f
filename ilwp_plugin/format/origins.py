"""Which channels of the original network a pruned one has left, and which kernels therefore predict each other.

Pruning breaks the collocated rule: kernel j is no longer the j-th of the original layer, and `j mod c` pairs strangers.
Every survivor keeps the reference it had; where that was pruned, the reference's own reference takes its place, and so
on. That needs no bits beyond the provenance itself, and no search. It is not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import TensorError

__all__ = ["GENERATIONS", "Origin", "Provenance", "ancestral_references", "chain_origins"]

GENERATIONS = 16
"""An ancestor is looked for in so many layers before a kernel's own."""


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the channels of one layer come from.

    Attributes:
        survivors: (channels,) int64; the original number of each channel, no two alike.
        channels: how many the original layer had.

    Raises:
        TensorError: the survivors are not distinct numbers of original channels.
    """

    survivors: NDArray[np.int64]
    channels: int

    def __post_init__(self) -> None:
        s = np.asarray(self.survivors)
        if s.ndim != 1 or s.dtype != np.int64 or len(s) == 0:
            raise TensorError(f"survivors: expected one or more int64, got {s.shape} {s.dtype}")
        object.__setattr__(self, "survivors", s)
        distinct = len(np.unique(s))
        if int(s.min()) < 0 or int(s.max()) >= self.channels or distinct < len(s):
            raise TensorError(
                f"survivors: expected distinct numbers of the {self.channels} original channels, got {len(s)} from "
                f"{int(s.min())} to {int(s.max())}, {distinct} of them distinct"
            )

    @classmethod
    def whole(cls, channels: int) -> Origin:
        """Of a layer that has all its channels."""
        return cls(np.arange(channels, dtype=np.int64), channels)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, and all channels are in their places."""
        return len(self.survivors) == self.channels and bool((self.survivors[1:] > self.survivors[:-1]).all())

    def without(self, pruned: Sequence[int]) -> Origin:
        """After some of the present channels were pruned. Raises TensorError where none would be left."""
        keep = np.ones(len(self.survivors), dtype=bool)
        keep[np.asarray(list(pruned), dtype=np.int64)] = False
        return Origin(self.survivors[keep], self.channels)


Provenance = Mapping[str, Origin]
"""By layer name. A layer that is not in it has all its channels, in their order."""


def ancestral_references(origins: Sequence[Origin]) -> list[NDArray[np.int64]]:
    """The references of a pruned chain.

    The parent of a kernel is the original one of its collocated reference: original kernel o of a layer has parent
    `o mod n` in the layer before, which had n. A kernel is predicted by its parent or, where that was pruned, by the
    nearest ancestor that is left, at most `GENERATIONS` layers before; where none is, by the collocated rule among the
    survivors.

    Args:
        origins: of each layer of the chain.

    Returns:
        For each layer (kernels,) int64 kernel numbers in the chain; -1 throughout for the first one.
    """
    references = [np.full(len(origins[0].survivors), -1, np.int64)]
    counts = [len(origin.survivors) for origin in origins]
    starts = np.cumsum([0, *counts[:-1]])
    orders = [np.argsort(origin.survivors, kind="stable") for origin in origins]
    present = [origin.survivors[order] for origin, order in zip(origins, orders, strict=True)]
    for i in range(1, len(origins)):
        ancestor, missing = origins[i].survivors, np.arange(counts[i])
        chosen = starts[i - 1] + np.arange(counts[i], dtype=np.int64) % counts[i - 1]
        for before in range(i - 1, max(-1, i - 1 - GENERATIONS), -1):
            ancestor = ancestor % origins[before].channels
            at = np.minimum(np.searchsorted(present[before], ancestor), counts[before] - 1)
            found = present[before][at] == ancestor
            chosen[missing[found]] = starts[before] + orders[before][at[found]]
            ancestor, missing = ancestor[~found], missing[~found]
            if not len(missing):
                break
        references.append(chosen)
    return references


def chain_origins(layers: Sequence[str], counts: Sequence[int], provenance: Provenance) -> list[Origin] | None:
    """The origins of a chain's layers; None where nothing is known of any.

    Args:
        layers: names of its layers.
        counts: kernels of each.
        provenance: by name of the layer or of its weight.

    Raises:
        TensorError: an origin does not fit its layer.
    """
    found = [provenance.get(name, provenance.get(f"{name}.weight")) for name in layers]
    if not any(found):
        return None
    origins = []
    for name, count, origin in zip(layers, counts, found, strict=True):
        if origin is not None and len(origin.survivors) != count:
            raise TensorError(f"layer {name!r} has {count} kernels, its provenance {len(origin.survivors)} channels")
        origins.append(Origin.whole(count) if origin is None else origin)
    return origins
