"""Soft weight-sharing (Ullrich, Meeds & Welling 2017, arXiv 1702.04008): a mixture of Gaussians draws weights together.

Constants are those of the authors' tutorial program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ilwp_plugin.method.codebooks import Codebooks, Codes
from ilwp_plugin.method.mixture import Gamma, Mixture, fit_by_expectation, negative_log_likelihood
from ilwp_plugin.recipes.base import RECIPES, Options, WeightSource
from ilwp_plugin.recipes.codebook import CodebookOptions, CodebookRecipe, CodebookTraining, Groups, OwnOptimizer

__all__ = ["SoftWeightSharing", "SoftWeightSharingOptions"]

Rate = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]

_ZERO, _OTHERS = Gamma(5e3, 2.0), Gamma(2.5e2, 0.1)
"""Priors of the precisions: that of the component of zero, and of the others."""


class SoftWeightSharingOptions(CodebookOptions):
    """Of `SoftWeightSharing`."""

    components: Annotated[int, Field(strict=True, ge=2, le=4096)] = Field(
        default=16, description="Of the mixture, that of zero among them: the most distinct values there can be."
    )
    zero_share: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(
        default=0.99, description="Share of the weights that the prior expects at zero."
    )
    tau: Rate = Field(default=0.003, description="Weight of the prior against the loss of all samples together.")
    samples: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=60_000,
        description="Training samples: the loss gets tau / samples times the negative log-likelihood of all weights.",
    )
    reach: Rate = Field(default=0.6, description="Means begin evenly from minus this to this.")
    deviation: Rate = Field(default=0.25, description="Standard deviation that all components begin with.")
    lr_means: Rate = Field(default=1e-4, description="Learning rate of Adam for the means.")
    lr_precisions: Rate = Field(default=3e-3, description="The same for the logarithms of the precisions.")
    lr_shares: Rate = Field(default=3e-3, description="The same for the logarithms of the shares.")
    assign_epoch: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        default=None,
        description="Epoch of training, from 0, that begins with every weight at the mean of its component; from then "
        "on the means other than 0 are trained by the loss alone. null assigns at the end.",
    )
    codebook: Literal["network"] = Field(default="network", description="One mixture is for all weights.")


class _Training(CodebookTraining):
    """Weights and mixture train together."""

    adaptive = True
    recipe: SoftWeightSharing

    def __init__(self, recipe: CodebookRecipe, sources: Mapping[str, WeightSource], groups: Groups) -> None:
        super().__init__(recipe, sources, groups)
        options = self.recipe.options
        self.mixture = options_mixture(options)
        self._optimizer = OwnOptimizer(
            {
                "means": (self.mixture.means, options.lr_means),
                "log_precisions": (self.mixture.log_precisions, options.lr_precisions),
                "logits": (self.mixture.logits, options.lr_shares),
            }
        )

    def loss(self) -> Tensor | None:
        if self.books is not None or not self.enabled or not self.loss_factor:
            return None
        weights = [source.weight() for source in self.sources.values()]
        device = weights[0].device
        own = Mixture(
            self.mixture.means.to(device),
            self.mixture.log_precisions.to(device),
            self.mixture.logits.to(device),
            self.mixture.zero_share,
        )
        options = self.recipe.options
        whole = negative_log_likelihood(own, weights) + own.penalty(_ZERO, _OTHERS)
        return self.loss_factor * options.tau / options.samples * whole

    def after_step(self) -> None:
        self._optimizer.step()

    def phase(self, epoch: int) -> None:
        at = self.recipe.options.assign_epoch
        if at is not None and epoch >= at and self.books is None:
            books = self.final()
            self.hold(books, [book.any(dim=1) for book in books.books])

    @torch.no_grad()
    def final(self) -> Codebooks:
        if self.books is not None:
            return super().final()
        return assigned(self.mixture, self.weights())

    def state(self) -> dict[str, Any]:
        return {**super().state(), "mixture": self._optimizer.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._optimizer.load(state["mixture"])


def options_mixture(options: SoftWeightSharingOptions) -> Mixture:
    """The mixture that training begins with."""
    return Mixture.start(options.components, options.zero_share, options.reach, options.deviation)


def assigned(mixture: Mixture, weights: Mapping[str, Tensor]) -> Codebooks:
    """Every weight at the mean of the component that is most responsible for it, once close components are merged."""
    numbers: dict[str, Codes] = {}
    means = torch.zeros(1)
    for key, weight in weights.items():
        means, own = mixture.assigned(weight.detach().flatten())
        numbers[key] = Codes(0, own)
    return Codebooks((means[:, None],), numbers)


@RECIPES.register("soft_weight_sharing")
class SoftWeightSharing(CodebookRecipe):
    """A mixture of Gaussians is the prior of all weights and is learned together with them: they gather around its
    means, most of them around 0, and in the end each takes the mean that is most responsible for it."""

    name: ClassVar[str] = "soft_weight_sharing"
    options_type: ClassVar[type[Options]] = SoftWeightSharingOptions
    options: SoftWeightSharingOptions
    training = _Training

    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        """Without training the mixture is fitted to the weights as they are."""
        values = torch.cat([weight.detach().flatten().cpu() for weight in weights.values()])
        return assigned(fit_by_expectation(options_mixture(self.options), values, _ZERO, _OTHERS), weights)
