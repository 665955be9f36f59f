"""The recipe `weight_fixing`: few distinct values for the whole network (Subia-Waud, Dasmahapatra 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.method.codebooks import FREE, Codebooks, Codes
from ilwp_plugin.method.weight_fixing import SMALLEST, candidates, fix, pull
from ilwp_plugin.recipes.base import RECIPES, Options, Weight
from ilwp_plugin.recipes.codebook import CodebookOptions, CodebookRecipe, CodebookTraining, Groups

__all__ = ["WeightFixing", "WeightFixingOptions", "WeightFixingTraining"]

Share = Annotated[float, Field(strict=True, gt=0, le=1)]


class WeightFixingOptions(CodebookOptions):
    """Of `WeightFixing`."""

    codebook: Literal["layer", "kind", "network"] = Field(
        default="network",
        description="Which weights share values: those of the whole network (the paper's), of all layers of a kind, "
        "or of a layer.",
    )
    distance: Annotated[float, Field(strict=True, gt=0, lt=0.5)] = Field(
        default=0.1,
        description="Relative distance that a weight may be from its value in the mean, 0 to 0.5. The larger, the "
        "fewer values.",
    )
    smallest: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        default=SMALLEST, description="The least magnitude of a value that is not 0; smaller weights become 0."
    )
    fractions: tuple[Share, ...] = Field(
        default=(0.3, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 1.0),
        min_length=1,
        description="Shares of the weights that are fixed after each round, rising. What training does not come to is "
        "fixed at its end.",
    )
    epochs: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=1, description="Epochs of training between two rounds."
    )
    first: Annotated[int, Field(strict=True, ge=0)] = Field(default=0, description="Epoch, from 0, of the first round.")
    regularizer: Weight = Field(
        default=0.1,
        description="Weight of the loss that pulls free weights to their nearest values: their mean relative distance.",
    )

    @field_validator("fractions")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(a >= b for a, b in pairwise(value)):
            raise ConfigError(f"fractions: expected rising shares, got {list(value)}")
        return value


class WeightFixingTraining(CodebookTraining):
    """In each round more weights are fixed; those that are free train on, and are pulled to the values."""

    recipe: WeightFixing

    def phase(self, epoch: int) -> None:
        options = self.recipe.options
        number, rest = divmod(epoch - options.first, options.epochs)
        if number < 0 or rest or number >= len(options.fractions):
            return
        self.hold(self._round(options.fractions[number]))

    def _round(self, share: float) -> Codebooks:
        weights = self.weights()
        return Codebooks.all(
            self.recipe.more(self._of(number), {key: weights[key] for key in group}, share)
            for number, group in enumerate(self.groups)
        )

    def _of(self, number: int) -> Codebooks | None:
        """The book of a group alone."""
        if self.books is None:
            return None
        own = {key: replace(codes, book=0) for key, codes in self.books.codes.items() if codes.book == number}
        return Codebooks((self.books.books[number],), own)

    def completed(self, books: Codebooks, weights: Mapping[str, Tensor]) -> Codebooks:
        return self._round(1.0)

    def loss(self) -> Tensor | None:
        weight = self.recipe.options.regularizer * self.loss_factor
        if self.books is None or not weight or not self.enabled:
            return None
        pulls: list[Tensor] = []
        total = 0
        for key, source in self.sources.items():
            codes = self.books.codes[key]
            free = (codes.indices < 0).to(source.weight().device)
            count = int(free.sum())
            if count:
                own = source.weight().flatten().float()[free]
                pulls.append(pull(own, self.books.books[codes.book][:, 0]) * count)
                total += count
        return weight * torch.stack(pulls).sum() / total if pulls else None

    def statistics(self) -> dict[str, float]:
        held = 0.0
        if self.books is not None:
            indices: Sequence[Tensor] = [codes.indices for codes in self.books.codes.values()]
            held = sum(int((own >= 0).sum()) for own in indices) / sum(own.numel() for own in indices)
        return {**super().statistics(), "weight_fixing: share that is fixed": held}


@RECIPES.register("weight_fixing")
class WeightFixing(CodebookRecipe):
    """A handful of values, most of them sums of few powers of two."""

    name: ClassVar[str] = "weight_fixing"
    options_type: ClassVar[type[Options]] = WeightFixingOptions
    options: WeightFixingOptions
    training: ClassVar[type[CodebookTraining]] = WeightFixingTraining

    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        return Codebooks.all(self.more(None, {key: weights[key] for key in group}, 1.0) for group in groups)

    def table(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The candidates for some weights."""
        largest = max(float(weight.abs().max()) for weight in weights.values())
        return candidates(largest, self.options.distance, self.options.smallest)

    def more(self, known: Codebooks | None, weights: Mapping[str, Tensor], share: float) -> Codebooks:
        """The codebook of weights that share one, with so large a share of them fixed.

        Args:
            known: the codebook so far; None before the first round.
            weights: by key, all that share it.
            share: of them, to be fixed altogether.
        """
        table = self.table(weights) if known is None else known.books[0][:, 0]
        sizes = [weight.numel() for weight in weights.values()]
        if known is None:
            indices = torch.full((sum(sizes),), FREE, dtype=torch.int64)
        else:
            indices = torch.cat([known.codes[key].indices for key in weights])
        free = indices < 0
        values = torch.cat([weight.detach().float().flatten().cpu() for weight in weights.values()])
        count = round(share * len(values)) - int((~free).sum())
        indices = indices.clone()
        indices[free] = fix(values[free], table, count, self.options.distance)
        codes = {key: Codes(0, part) for key, part in zip(weights, torch.split(indices, sizes), strict=True)}
        return Codebooks((table[:, None],), codes)
