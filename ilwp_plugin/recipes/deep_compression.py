"""Deep Compression (Han, Mao & Dally 2015, arXiv 1510.00149): prune, share, code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.method.codebooks import Codebooks, Codes, nearest_entries
from ilwp_plugin.method.kmeans import STARTS, distinct_start, kmeans
from ilwp_plugin.method.pruning import kept_weights, sparsity_at
from ilwp_plugin.recipes.base import RECIPES, Options, WeightSource, registered
from ilwp_plugin.recipes.codebook import CodebookOptions, CodebookRecipe, CodebookTraining, Groups

__all__ = ["DeepCompression", "DeepCompressionOptions"]

Bits = Annotated[int, Field(strict=True, ge=1, le=12)]
Epoch = Annotated[int, Field(strict=True, ge=0)]


class DeepCompressionOptions(CodebookOptions):
    """Of `DeepCompression`."""

    sparsity: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        default=0.9, description="Share of the weights that become 0, over all layers together."
    )
    pruning: Literal["deviation", "magnitude"] = Field(
        default="deviation",
        description="What a weight is measured by: 'deviation' compares it with the standard deviation of its layer, "
        "'magnitude' with one threshold for the network.",
    )
    conv_bits: Bits = Field(default=8, description="2 to this many shared values for each group of convolutions.")
    linear_bits: Bits = Field(default=5, description="The same for weights of two dimensions.")
    start: str = Field(
        default="linear",
        description="Centres that k-means begins with: 'linear' spreads them evenly from the smallest to the largest "
        "weight, 'density' by the distribution of weights, 'random' takes weights.",
    )
    seed: Annotated[int, Field(strict=True, ge=0)] = Field(default=0, description="Of start 'random'.")
    prune_epochs: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=1, description="Epochs over which the share of zeros rises; the others are retrained all the time."
    )
    cluster_epoch: Epoch = Field(
        default=2,
        description="Epoch of training, from 0, that begins with weights sharing values; from then on these are "
        "trained. Without training, weights are pruned and shared at once.",
    )

    @field_validator("start", mode="before")
    @classmethod
    def _known_start(cls, value: object) -> object:
        return registered("start", value, STARTS)

    @model_validator(mode="after")
    def _in_order(self) -> DeepCompressionOptions:
        if self.cluster_epoch < self.prune_epochs - 1:
            raise ConfigError(
                f"cluster_epoch: {self.cluster_epoch} begins before pruning ends; expected at least prune_epochs - 1, "
                f"which is {self.prune_epochs - 1}"
            )
        return self


class _Training(CodebookTraining):
    """Pruned weights stay 0, the others train; then their shared values do."""

    adaptive = True
    recipe: DeepCompression

    def __init__(self, recipe: CodebookRecipe, sources: Mapping[str, WeightSource], groups: Groups) -> None:
        super().__init__(recipe, sources, groups)
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        return {key: self.free(key, weight) for key, weight in super().weights().items()}

    def free(self, key: str, weight: Tensor) -> Tensor:
        if key not in self._kept:
            return weight
        if self._kept[key].device != weight.device:
            self._kept[key] = self._kept[key].to(weight.device)
        return weight.masked_fill(~self._kept[key], 0.0)

    def phase(self, epoch: int) -> None:
        options = self.recipe.options
        if epoch < options.prune_epochs:
            sparsity = sparsity_at(epoch, options.prune_epochs, options.sparsity)
            self._kept = kept_weights(self.weights(), sparsity, options.pruning)
        if epoch >= options.cluster_epoch and self.books is None:
            books = self.final()
            self.hold(books, [book.any(dim=1) for book in books.books])

    def state(self) -> dict[str, Any]:
        return {**super().state(), "kept": dict(self._kept)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._kept = dict(state["kept"])


@RECIPES.register("deep_compression")
class DeepCompression(CodebookRecipe):
    """Small weights become 0 and the rest is retrained; k-means lets weights share a few values, which are trained on;
    zeros are left out of the codes where that is smaller, and everything is entropy-coded."""

    name: ClassVar[str] = "deep_compression"
    options_type: ClassVar[type[Options]] = DeepCompressionOptions
    options: DeepCompressionOptions
    training = _Training

    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        kept = kept_weights(weights, self.options.sparsity, self.options.pruning)
        return Codebooks.all(self._shared({key: weights[key] for key in group}, kept) for group in groups)

    def _shared(self, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Codebooks:
        """0 is the first entry; k-means is about the others."""
        values = torch.cat([weight.detach()[kept[key]].flatten().double().cpu() for key, weight in weights.items()])
        bits = max(
            self.options.linear_bits if weight.dim() == 2 else self.options.conv_bits for weight in weights.values()
        )
        centres = torch.empty(0, dtype=torch.float64)
        if len(values):
            centres = kmeans(values, distinct_start(values, 1 << bits, self.options.start, self.options.seed))
        book = torch.cat([torch.zeros(1), centres.float()])[:, None]
        codes: dict[str, Codes] = {}
        for key, weight in weights.items():
            flat, own = weight.detach().cpu().flatten(), kept[key].cpu().flatten()
            indices = torch.zeros(len(flat), dtype=torch.int64)
            if bool(own.any()):
                indices[own] = nearest_entries(flat[own], book[1:]) + 1
            codes[key] = Codes(0, indices)
        return Codebooks((book,), codes)
