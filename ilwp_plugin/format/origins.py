"""Which channels of the original network a pruned one has left, and which kernels therefore predict each other.

Pruning breaks the collocated rule: kernel j is no longer the j-th of the original layer, and `j mod c` pairs strangers.
Every survivor keeps the reference it had; where that was pruned, the reference's own reference takes its place, and so
on. That needs no bits beyond the provenance itself, and no search. It is not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import TensorError

__all__ = ["GENERATIONS", "Lineage", "Origin", "Provenance", "ancestral_references", "chain_origins"]

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

    @cached_property
    def in_order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The survivors in ascending order, and which channel each of them is."""
        order = np.argsort(self.survivors, kind="stable").astype(np.int64)
        return self.survivors[order], order

    def without(self, pruned: Sequence[int]) -> Origin:
        """After some of the present channels were pruned. Raises TensorError where none would be left."""
        keep = np.ones(len(self.survivors), dtype=bool)
        keep[np.asarray(list(pruned), dtype=np.int64)] = False
        return Origin(self.survivors[keep], self.channels)


Provenance = Mapping[str, Origin]
"""By layer name. A layer that is not in it has all its channels, in their order."""


class Lineage:
    """The references of a pruned chain.

    The parent of a kernel is the original one of its collocated reference: original kernel o of a layer has parent
    `o mod n` in the layer before, which had n. A kernel is predicted by its parent or, where that was pruned, by the
    nearest ancestor that is left, at most `GENERATIONS` layers before; where none is, by the collocated rule among the
    survivors.

    Args:
        origins: of each layer of the chain.
    """

    def __init__(self, origins: Sequence[Origin]) -> None:
        self._origins = origins
        self._starts = np.cumsum([0, *(len(origin.survivors) for origin in origins)])

    def references(self, number: int) -> NDArray[np.int64]:
        """Of the layer of a number, from 0: (kernels,) int64 kernel numbers in the chain; -1 for the first layer."""
        ancestor = self._origins[number].survivors
        if number == 0:
            return np.full(len(ancestor), -1, np.int64)
        kernels = np.arange(len(ancestor), dtype=np.int64)
        chosen: NDArray[np.int64] = self._starts[number - 1] + kernels % len(self._origins[number - 1].survivors)
        missing = kernels
        for before in range(number - 1, max(-1, number - 1 - GENERATIONS), -1):
            ancestor = ancestor % self._origins[before].channels
            present, order = self._origins[before].in_order
            at = np.minimum(np.searchsorted(present, ancestor), len(present) - 1)
            found = present[at] == ancestor
            chosen[missing[found]] = self._starts[before] + order[at[found]]
            ancestor, missing = ancestor[~found], missing[~found]
            if not len(missing):
                break
        return chosen


def ancestral_references(origins: Sequence[Origin]) -> list[NDArray[np.int64]]:
    """The references of every layer of a pruned chain; see `Lineage`."""
    lineage = Lineage(origins)
    return [lineage.references(number) for number in range(len(origins))]


def chain_origins(layers: Sequence[str], counts: Sequence[int], provenance: Provenance) -> list[Origin] | None:
    """The origins of a chain's layers; None where nothing is known of any.

    Args:
        layers: names of its layers.
        counts: kernels of each.
        provenance: by the same names.

    Raises:
        TensorError: an origin does not fit its layer.
    """
    found = [provenance.get(name) for name in layers]
    if not any(found):
        return None
    origins = []
    for name, count, origin in zip(layers, counts, found, strict=True):
        if origin is not None and len(origin.survivors) != count:
            raise TensorError(f"layer {name!r} has {count} kernels, its provenance {len(origin.survivors)} channels")
        origins.append(Origin.whole(count) if origin is None else origin)
    return origins
