"""Multi-level quantization, MLQ (Xu et al. 2018, arXiv 1803.03289): ternary weights, layer after layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ilwp_plugin.method.codebooks import FREE, Codebooks, Codes, nearest_entries
from ilwp_plugin.method.kmeans import kmeans
from ilwp_plugin.recipes.base import RECIPES, Options
from ilwp_plugin.recipes.codebook import CodebookOptions, CodebookRecipe, CodebookTraining, Groups

__all__ = ["Mlq", "MlqOptions"]


class MlqOptions(CodebookOptions):
    """Of `Mlq`."""

    rounds: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=4, description="In each round so many layers more are quantized that all are in the last one."
    )
    epochs_per_round: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=1, description="Epochs of training between two rounds."
    )


class _Training(CodebookTraining):
    """Groups are quantized in the order of the network; what is not yet quantized makes up for the error."""

    adaptive = True
    recipe: Mlq

    def phase(self, epoch: int) -> None:
        options = self.recipe.options
        number, rest = divmod(epoch, options.epochs_per_round)
        if not rest and number < options.rounds:
            self._quantize(-(-len(self.groups) * (number + 1) // options.rounds))

    @torch.no_grad()
    def _quantize(self, count: int) -> None:
        """The first `count` groups; those that are quantized already stay."""
        weights = self.weights()
        books, codes = [], {}
        for number, group in enumerate(self.groups):
            before = self.books
            if before is not None and bool((before.codes[group[0]].indices >= 0).all()):
                books.append(before.books[number])
                codes.update({key: before.codes[key] for key in group})
            elif number < count:
                own = self.recipe.ternary({key: weights[key] for key in group})
                books += own.books
                codes.update({key: Codes(number, value.indices) for key, value in own.codes.items()})
            else:
                books.append(torch.zeros(1, 1))
                codes.update({key: Codes(number, torch.full((weights[key].numel(),), FREE)) for key in group})
        self.hold(Codebooks(tuple(books), codes))

    @torch.no_grad()
    def completed(self, books: Codebooks, weights: Mapping[str, Tensor]) -> Codebooks:
        self._quantize(len(self.groups))
        assert self.books is not None
        return self.books


@RECIPES.register("mlq")
class Mlq(CodebookRecipe):
    """Every weight of a layer becomes 0, or one of two values; layers are quantized one after the other, and the layers
    that are left train, which makes up for the error (incremental layer compensation)."""

    name: ClassVar[str] = "mlq"
    options_type: ClassVar[type[Options]] = MlqOptions
    options: MlqOptions
    training = _Training

    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        return Codebooks.all(self.ternary({key: weights[key] for key in group}) for group in groups)

    def ternary(self, weights: Mapping[str, Tensor]) -> Codebooks:
        """Three centres by k-means: 0, which stays, a negative and a positive one."""
        flat = {key: weight.detach().double().cpu().flatten() for key, weight in weights.items()}
        values = torch.cat(list(flat.values()))
        start = torch.tensor([0.0, float(values.min().clamp(max=0)), float(values.max().clamp(min=0))])
        centres = kmeans(values, start, torch.tensor([True, False, False]))
        book = centres.float()[:, None]
        return Codebooks((book,), {key: Codes(0, nearest_entries(value, book)) for key, value in flat.items()})
