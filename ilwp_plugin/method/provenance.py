"""Which channels of the original network a pruned one has left, and which kernels therefore predict each other.

Pruning breaks the collocated rule: kernel j is no longer the j-th of the original layer, and `j mod c` pairs strangers.
Every survivor keeps the reference it had; where that was pruned, the reference's own reference takes its place, and so
on. That needs no bits beyond the provenance itself, and no search. It is not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format import origins as origins_of_files
from ilwp_plugin.method.prediction import previous_layer_references

__all__ = ["Origin", "Provenance", "ancestral_references", "family_scores", "given_references"]

_OWN_PART = 1e-3


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the channels of one layer come from.

    Attributes:
        survivors: (channels,) int64; the original number of each channel, no two alike.
        channels: how many the original layer had.

    Raises:
        TensorError: the survivors are not distinct numbers of original channels.
    """

    survivors: Tensor
    channels: int

    def __post_init__(self) -> None:
        s = self.survivors
        if s.dim() != 1 or s.dtype != torch.int64 or len(s) == 0:
            raise TensorError(f"survivors: expected one or more int64, got {tuple(s.shape)} {s.dtype}")
        distinct = len(set(s.tolist()))
        if int(s.min()) < 0 or int(s.max()) >= self.channels or distinct < len(s):
            raise TensorError(
                f"survivors: expected distinct numbers of the {self.channels} original channels, got {len(s)} from "
                f"{int(s.min())} to {int(s.max())}, {distinct} of them distinct"
            )

    @classmethod
    def whole(cls, channels: int) -> Origin:
        """Of a layer that has all its channels."""
        return cls(torch.arange(channels), channels)

    def without(self, pruned: Sequence[int]) -> Origin:
        """After some of the present channels were pruned. Raises TensorError where none would be left."""
        keep = torch.ones(len(self.survivors), dtype=torch.bool)
        keep[torch.as_tensor(list(pruned), dtype=torch.int64)] = False
        return Origin(self.survivors[keep], self.channels)


Provenance = Mapping[str, Origin]
"""By layer name. A layer that is not in it has all its channels, in their order."""


def ancestral_references(origins: Sequence[Origin]) -> list[Tensor]:
    """The references of a pruned chain, as a file has them: see `format.origins.Lineage`.

    Args:
        origins: of each layer of the chain.

    Returns:
        For each layer (kernels,) int64 kernel numbers in the chain; -1 throughout for the first one.
    """
    stored = [origins_of_files.Origin(origin.survivors.numpy(), origin.channels) for origin in origins]
    return [torch.from_numpy(references) for references in origins_of_files.ancestral_references(stored)]


def family_scores(values: Sequence[Tensor], references: Sequence[Tensor]) -> list[Tensor]:
    """Scores by which kernels go together with those that predict them.

    A kernel without a reference has the mean value of its family: itself and all that it predicts, directly and
    indirectly. A kernel with one has the score of its reference, and for the order among those that share it a
    thousandth part of the mean of its own family. So the kernels of lowest score, the same share of each layer, are
    whole families, but for a few where numbers of kernels are no multiples.

    Args:
        values: (kernels,) of each layer of a chain.
        references: (kernels,) int64 of each layer, see `method.prediction`.

    Returns:
        (kernels,) float64 of each layer.
    """
    own = torch.cat(list(values)).double()
    sums = torch.stack([own, torch.ones_like(own)])  # of values, and of kernels
    ends = torch.tensor([len(v) for v in values]).cumsum(0).tolist()
    layers = [torch.arange(end - len(v), end) for v, end in zip(values, ends, strict=True)]
    for layer, given in zip(layers[::-1], references[::-1], strict=True):
        predicted = given >= 0
        sums.index_add_(1, given[predicted], sums[:, layer[predicted]])
    scores = sums[0] / sums[1]
    for layer, given in zip(layers, references, strict=True):
        predicted = given >= 0
        scores[layer[predicted]] += (scores[given[predicted]] - scores[layer[predicted]]) * (1 - _OWN_PART)
    return [scores[layer] for layer in layers]


def given_references(
    layers: Sequence[str], counts: Sequence[int], references: Mapping[str, Tensor] | Provenance
) -> list[Tensor | None]:
    """The references of a chain that are given instead of chosen.

    Args:
        layers: names of its layers.
        counts: kernels of each.
        references: by layer name (or its weight's), index maps into the layer before, or the origins of channels.

    Returns:
        For each layer (kernels,) int64 kernel numbers in the chain, or None where nothing is given.

    Raises:
        TensorError: a map or an origin does not fit its layer.
    """
    values = [references.get(name, references.get(f"{name}.weight")) for name in layers]
    if not any(isinstance(value, Origin) for value in values):
        return [
            None
            if value is None or i == 0
            else previous_layer_references(cast(Tensor, value), counts[i], counts[:i], layers[i])
            for i, value in enumerate(values)
        ]
    origins = []
    for name, count, value in zip(layers, counts, values, strict=True):
        origin = Origin.whole(count) if value is None else value
        if not isinstance(origin, Origin):
            raise TensorError(f"references of layer {name!r}: some layers have an origin, this one an index map")
        if len(origin.survivors) != count:
            raise TensorError(f"layer {name!r} has {count} kernels, its provenance {len(origin.survivors)} channels")
        origins.append(origin)
    return [None, *ancestral_references(origins)[1:]]
