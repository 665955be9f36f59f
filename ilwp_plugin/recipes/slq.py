"""Single-level quantization, SLQ (Xu et al. 2018, arXiv 1803.03289): clusters are fixed some at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.method.codebooks import FREE, Codebooks, Codes, nearest_entries
from ilwp_plugin.method.kmeans import around_zero, kmeans
from ilwp_plugin.recipes.base import RECIPES, Options, WeightSource
from ilwp_plugin.recipes.codebook import CodebookOptions, CodebookRecipe, CodebookTraining, Groups

__all__ = ["Slq", "SlqOptions"]

_SHARES = (5, 9, 13, 15, 17)
"""Of 17 clusters, those that are fixed after each round of the paper."""


class SlqOptions(CodebookOptions):
    """Of `Slq`."""

    clusters: Annotated[int, Field(strict=True, ge=2, le=4096)] = Field(
        default=17, description="Distinct values of each group of weights; 0 is one of them."
    )
    fixed: tuple[Annotated[int, Field(strict=True, ge=1)], ...] | None = Field(
        default=None,
        description="How many clusters are fixed once each round has begun, rising, the last one all of them; null is "
        "(5, 9, 13, 15, 17) for 17 clusters, as in the paper, and the same shares of others.",
    )
    order: Literal["loss", "magnitude"] = Field(
        default="loss",
        description="Which clusters are fixed first: 'loss' those with the least squared error, 'magnitude' 0 and then "
        "those of the largest values, as the authors' program has it.",
    )
    epochs_per_round: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=1, description="Epochs of training between two rounds."
    )

    @model_validator(mode="after")
    def _rising(self) -> SlqOptions:
        rounds = self.fixed
        if rounds is not None and (list(rounds) != sorted(set(rounds)) or not rounds or rounds[-1] != self.clusters):
            raise ConfigError(
                f"fixed: {list(rounds)}: expected rising numbers of which the last is `clusters`, {self.clusters}"
            )
        return self

    @property
    def rounds(self) -> tuple[int, ...]:
        """How many clusters are fixed once each round has begun."""
        if self.fixed is not None:
            return self.fixed
        return tuple(sorted({max(1, round(share * self.clusters / _SHARES[-1])) for share in _SHARES}))


class _Training(CodebookTraining):
    """What is in a fixed cluster stays; the rest trains, and is clustered again at each round."""

    adaptive = True
    recipe: Slq

    def __init__(self, recipe: CodebookRecipe, sources: Mapping[str, WeightSource], groups: Groups) -> None:
        super().__init__(recipe, sources, groups)
        self._fixed: list[Tensor] = []

    def phase(self, epoch: int) -> None:
        options = self.recipe.options
        number, rest = divmod(epoch, options.epochs_per_round)
        if not rest and number < len(options.rounds):
            self._fix(options.rounds[number])

    @torch.no_grad()
    def _fix(self, count: int) -> None:
        """Fix clusters until there are so many that are fixed in each group."""
        books, self._fixed = self.recipe.clustered(self.weights(), self.groups, self.books, self._fixed, count)
        self.hold(books)

    def completed(self, books: Codebooks, weights: Mapping[str, Tensor]) -> Codebooks:
        return self.recipe.clustered(weights, self.groups, books, self._fixed, self.recipe.options.clusters)[0]

    def state(self) -> dict[str, Any]:
        return {**super().state(), "fixed": list(self._fixed)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._fixed = [fixed.cpu() for fixed in state["fixed"]]


@RECIPES.register("slq")
class Slq(CodebookRecipe):
    """Weights of a layer are clustered by k-means; some clusters are fixed and the other weights trained, which makes
    up for the error, until all are fixed."""

    name: ClassVar[str] = "slq"
    options_type: ClassVar[type[Options]] = SlqOptions
    options: SlqOptions
    training = _Training

    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        return self.clustered(weights, groups, None, [], self.options.clusters)[0]

    def clustered(
        self,
        weights: Mapping[str, Tensor],
        groups: Groups,
        before: Codebooks | None,
        fixed: list[Tensor],
        count: int,
    ) -> tuple[Codebooks, list[Tensor]]:
        """Cluster what is free, and fix clusters until there are `count` in each group.

        Args:
            weights: by key.
            groups: of all keys.
            before: books of the round before.
            fixed: of each of them, (clusters,) bool, the clusters that are fixed by now.
            count: so many are to be fixed.

        Returns:
            Books, free where a cluster is not fixed; and the clusters that are fixed now.
        """
        books, codes, now = [], {}, []
        for number, group in enumerate(groups):
            flat = {key: weights[key].detach().cpu().flatten() for key in group}
            held = {key: torch.full((len(value),), FREE) for key, value in flat.items()}
            if before is not None:
                held = {key: before.codes[key].indices for key in group}
            free = torch.cat([flat[key][held[key] < 0] for key in group]).double()
            if before is None:
                centres = around_zero(free, self.options.clusters)
                stays = torch.arange(len(centres)) == 0  # which are not moved by the weights
                done = torch.zeros(len(centres), dtype=torch.bool)
            else:
                centres, done = before.books[number][:, 0].double(), fixed[number]
                stays = done | (torch.arange(len(centres)) == 0)
            if len(free):
                centres = kmeans(free, centres, stays)
            centres = centres.float().double()
            nearest = nearest_entries(free, centres[:, None])
            done = done | self._chosen(free, nearest, centres, done, count - int(done.sum()))
            at = 0
            for key in group:
                own = held[key].clone()
                open_ = own < 0
                mine = nearest[at : at + int(open_.sum())]
                at += len(mine)
                own[open_] = torch.where(done[mine], mine, FREE)
                codes[key] = Codes(number, own)
            books.append(centres.float()[:, None])
            now.append(done)
        return Codebooks(tuple(books), codes), now

    def _chosen(self, free: Tensor, nearest: Tensor, centres: Tensor, done: Tensor, count: int) -> Tensor:
        """(clusters,) bool: the clusters that are fixed next."""
        if self.options.order == "loss":
            error = (free - centres[nearest]).square()
            rank = torch.zeros(len(centres), dtype=torch.float64).index_add_(0, nearest, error)
        else:
            rank = torch.where(centres == 0, -torch.inf, -centres.abs())
        rank = torch.where(done, torch.inf, rank)
        chosen = torch.zeros(len(centres), dtype=torch.bool)
        chosen[rank.argsort(stable=True)[: max(0, count)]] = True
        return chosen
