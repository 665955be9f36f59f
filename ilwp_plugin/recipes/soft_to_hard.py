"""The recipe `soft_to_hard`: vector quantization whose soft assignments harden (Agustsson et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.method.codebooks import Codebooks, entropy_of
from ilwp_plugin.method.soft_assignment import hard_codebook, histogram_entropy, soft_assignment
from ilwp_plugin.models.network import Network
from ilwp_plugin.recipes.base import RECIPES, Options, Weight, WeightSource
from ilwp_plugin.recipes.codebook import (
    CodebookOptions,
    CodebookRecipe,
    CodebookTraining,
    Groups,
    OwnOptimizer,
    whole_book,
)

__all__ = ["SoftToHard", "SoftToHardOptions", "SoftToHardTraining"]

_CHECKED = 20
"""Steps between two looks at the entropy of the hard assignments."""

_GAIN = 0.1
"""How fast the weight of the entropy follows what is missing to the target, in powers of e for its double."""

_MOST = 1e3
"""Factor by which the weight of the entropy changes at most."""

_PRUNED = 0.01
"""Share of zeros from which on weights count as pruned."""

Positive = Annotated[float, Field(strict=True, gt=0, le=1e6)]


class SoftToHardOptions(CodebookOptions):
    """Of `SoftToHard`."""

    codebook: Literal["layer", "kind", "network"] = Field(
        default="network",
        description="Which weights share centres: those of the whole network (the paper's), of all layers of a kind, "
        "or of a layer.",
    )
    entries: Annotated[int, Field(strict=True, ge=2, le=4096)] = Field(
        default=32, description="Centres of a codebook at most; one of them is 0 and stays."
    )
    width: Annotated[int, Field(strict=True, ge=1, le=16)] = Field(
        default=1,
        description="Consecutive weights of a vector. Layers that it does not divide are taken weight by weight. "
        "More than 1 is not for pruned weights, whose zeros would not stay.",
    )
    bits: Positive = Field(default=2.0, description="Entropy of the indices that is aimed at, in bits a weight.")
    beta: Weight = Field(
        default=1.0,
        description="Weight of the entropy in the loss at the start; it follows what is missing to `bits`.",
    )
    sharpness: Positive = Field(
        default=3.0,
        description="Of the assignments at the start, in 1 / squared distance of neighbouring centres.",
    )
    growth: Annotated[float, Field(strict=True, ge=1, le=1e3)] = Field(
        default=4.0, description="Factor by which assignments get sharper in an epoch."
    )
    epochs: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=3, description="Epochs of soft assignment; then they are hard, and centres learn on with their members."
    )
    lr: Positive = Field(default=2e-4, description="Learning rate of the centres, of Adam.")


class SoftToHardTraining(CodebookTraining):
    """Weights are mixtures of centres that become one centre each."""

    recipe: SoftToHard
    damped = True

    def __init__(self, recipe: CodebookRecipe, sources: Mapping[str, WeightSource], groups: Groups) -> None:
        super().__init__(recipe, sources, groups)
        options = self.recipe.options
        first = self.recipe.share(self.weights(), groups)
        self._centres = [book.clone() for book in first.books]
        self._number = {key: codes.book for key, codes in first.codes.items()}
        self._gaps = [_gap(book) for book in first.books]
        self._sizes = [
            sum(n for key, n in self._vectors().items() if self._number[key] == i) for i in range(len(groups))
        ]
        self._optimizer = self._learning()
        self._betas = [options.beta] * len(groups)
        self._steps, self._per_epoch = 0, 0
        self._seen: dict[str, Tensor] = {}

    def _learning(self) -> OwnOptimizer:
        return OwnOptimizer({str(i): (own, self.recipe.options.lr) for i, own in enumerate(self._centres)})

    def _vectors(self) -> dict[str, int]:
        """By key, how many."""
        return {
            key: source.weight().numel() // self._centres[self._number[key]].shape[1]
            for key, source in self.sources.items()
        }

    @property
    def _soft(self) -> bool:
        return self.books is None

    def _sharpness(self, number: int) -> float:
        done = 0.0 if not self._per_epoch else self._steps / self._per_epoch
        options = self.recipe.options
        return float(options.sharpness * options.growth ** min(done, options.epochs) / self._gaps[number])

    def _table(self, number: int, like: Tensor) -> Tensor:
        """The centres of a group; 0 stays."""
        fixed = torch.ones(len(self._centres[number]), 1)
        fixed[0] = 0.0
        return (self._centres[number] * fixed).to(like.device)

    def _assigned(self, key: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Soft values in the shape of a weight, float32, and the soft histogram."""
        number = self._number[key]
        table = self._table(number, weight)
        values, histogram = soft_assignment(weight.float().reshape(-1, table.shape[1]), table, self._sharpness(number))
        return values.reshape(weight.shape), histogram

    def free(self, key: str, weight: Tensor) -> Tensor:
        if not self._soft:
            return weight
        values, histogram = self._assigned(key, weight)
        if torch.is_grad_enabled():
            self._seen[key] = histogram
        return torch.where(weight == 0, 0.0, values).to(weight.dtype)

    def loss(self) -> Tensor | None:
        if not self._soft or not self.enabled:
            return None
        total: Tensor | None = None
        for number, group in enumerate(self.groups):
            weight = self._betas[number] * self.loss_factor * self._sizes[number] / sum(self._sizes)
            known = [self._seen.pop(key, None) for key in group]
            found = [
                self._assigned(key, self.sources[key].weight())[1] if own is None else own
                for key, own in zip(group, known, strict=True)
            ]
            missing = histogram_entropy(torch.stack(found).sum(dim=0)) - self._target(number)
            own = weight * torch.relu(missing)
            total = own if total is None else total + own
        return total

    def _target(self, number: int) -> float:
        """Bits of an index."""
        return self.recipe.options.bits * self._centres[number].shape[1]

    def after_step(self) -> None:
        self._seen = {}
        if not self._soft or not self.enabled:
            return
        self._optimizer.step()
        self._steps += 1
        if self._steps % _CHECKED == 0 and self.recipe.options.beta:
            self._adapt()

    @torch.no_grad()
    def _adapt(self) -> None:
        """The weights of the entropies follow what is missing to the target."""
        beta = self.recipe.options.beta
        made = self._hard()
        for number, group in enumerate(self.groups):
            indices = torch.cat([made.codes[key].indices for key in group])
            missing = entropy_of(torch.bincount(indices)) / self._target(number) - 1
            own = self._betas[number] * math.exp(_GAIN * max(-1.0, min(1.0, missing)))
            self._betas[number] = min(max(own, beta / _MOST), beta * _MOST)

    @torch.no_grad()
    def _hard(self) -> Codebooks:
        """Each vector at its nearest centre."""
        weights = self.weights()
        return Codebooks.all(
            whole_book(self._table(number, torch.empty(0)).detach().clone(), {key: weights[key] for key in group})
            for number, group in enumerate(self.groups)
        )

    def phase(self, epoch: int) -> None:
        if epoch == 1:
            self._per_epoch = self._steps
            self._steps = 0
        if epoch >= self.recipe.options.epochs and self._soft:
            books = self._hard()
            self.hold(books, [book.any(dim=1) for book in books.books])

    def final(self) -> Codebooks:
        return self._hard() if self._soft else super().final()

    def state(self) -> dict[str, Any]:
        own = {"betas": list(self._betas), "steps": self._steps, "per_epoch": self._per_epoch, "gaps": list(self._gaps)}
        return {**super().state(), **own, "centres": self._optimizer.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._betas, self._gaps = list(state["betas"]), list(state["gaps"])
        self._steps, self._per_epoch = int(state["steps"]), int(state["per_epoch"])
        # There may be more or fewer of them than the weights that this process began with have asked for.
        values = state["centres"]["values"]
        self._centres = [values[str(i)].detach().cpu().clone() for i in range(len(self.groups))]
        self._optimizer = self._learning()
        self._optimizer.load(state["centres"])


@RECIPES.register("soft_to_hard")
class SoftToHard(CodebookRecipe):
    """Vectors of weights as centres that are learned with them, at an entropy that is asked for."""

    name: ClassVar[str] = "soft_to_hard"
    options_type: ClassVar[type[Options]] = SoftToHardOptions
    options: SoftToHardOptions
    training: ClassVar[type[CodebookTraining]] = SoftToHardTraining

    def _group(self, network: Network, key: str) -> str:
        """Vectors of different widths share no codebook."""
        divides = network.state[key].numel() % self.options.width == 0
        return f"{super()._group(network, key)} {divides}"

    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        return Codebooks.all(self._shared({key: weights[key] for key in group}) for group in groups)

    def _shared(self, weights: Mapping[str, Tensor]) -> Codebooks:
        width = self.options.width
        if any(weight.numel() % width for weight in weights.values()):
            width = 1
        vectors = torch.cat([weight.detach().cpu().float().reshape(-1, width) for weight in weights.values()])
        zeros = float((vectors == 0).double().mean())
        if width > 1 and zeros > _PRUNED:
            raise ConfigError(
                f"width: {zeros:.0%} of the weights of {', '.join(list(weights)[:3])} are 0, and would not stay 0 in "
                f"vectors of {width}; set `width` to 1"
            )
        book = hard_codebook(vectors, self.options.entries, self.options.bits * width)
        return whole_book(book, weights)


def _gap(book: Tensor) -> float:
    """The mean squared distance of a centre from the nearest other one."""
    if len(book) < 2:
        return 1.0
    apart = torch.cdist(book.double(), book.double())
    apart.fill_diagonal_(math.inf)
    return float(apart.amin(dim=1).square().mean())
