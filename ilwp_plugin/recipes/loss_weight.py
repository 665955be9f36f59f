"""The weight of the inter-layer loss for a given length of training.

The paper trains 200 epochs with weight 1. What matters is how far the loss can pull a weight over the whole run: a step
of SGD moves it by `lr * weight / Z / (1 - momentum)`, Z being the number of predicted weights, so

    pull = weight / Z * sum over steps of lr / (1 - momentum)        (in units of weight).

The automatic weight makes the pull a multiple of the mean |residual| at the start. A training from the beginning takes
a smaller one the longer it is: less force then has the same effect. A network that is trained already takes a larger
one the longer it is: in a few steps it cannot make up for kernels that move far.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ilwp_plugin.errors import TrainingError
from ilwp_plugin.models.chains import evaluating

__all__ = [
    "TrainingRun",
    "automatic_loss_weight",
    "gradient_rms",
    "is_trained",
    "pull_of_fine_tuning",
    "task_gradient_rms",
]

_PULL_OF_LONG_RUNS = 1.0
_PULL_OF_SHORT_RUNS = 78.0
"""The pull, as a multiple of the mean residual, is `max(1, 78 / sqrt(steps))`.

About half the baseline's bytes at 8 bits took a multiple of 3.7 in 440 steps (digits), of 1.8 in 1,872 (Fashion-MNIST),
and in the paper's 39,200, with its weight of 1, of 1.0: with more time less force has the same effect.
"""

_PULL_OF_TRAINED_NETWORKS = 1.25
_STEPS_TO_PULL_ONCE = 440
"""The pull of a trained network is `min(1.25, steps / 440)`.

MobileNet on digits, trained (97.5 %), 6 bits: 110 steps bear a pull of 0.25 (97.5 % at a learning rate of 0.02), not of
0.8 (94.4 %), at any learning rate; 440 steps one of 1 (96.9 %, 0.56 of the bytes).
"""

_MAX_GRADIENT_RATIO = 3.0
"""Of the inter-layer to the task gradient under an adaptive optimizer; beyond it, more weight moves nothing more."""


@dataclass(frozen=True)
class TrainingRun:
    """How far an optimizer can move a weight over a run.

    Attributes:
        steps: optimizer steps.
        reach: sum over all steps of `lr / (1 - momentum)`, or of `lr` for an adaptive optimizer: how far a constant
            unit gradient moves a weight.
        gradient_rms: None for SGD. For an adaptive optimizer, whose step does not depend on the size of the gradient,
            the root mean square of the task's gradient on the predicted weights (see `gradient_rms`).
        pull: how far to pull, as a multiple of the mean residual; None for what suits the network, see `for_network`.
    """

    steps: int
    reach: float
    gradient_rms: float | None = None
    pull: float | None = None

    @classmethod
    def of(
        cls,
        optimizer: Optimizer,
        steps: int,
        scheduler: LRScheduler | None = None,
        steps_per_schedule: int = 1,
        gradient_rms: float | None = None,
        fine_tuning: bool | None = None,
    ) -> TrainingRun:
        """The run that an optimizer and a learning-rate schedule are about to make.

        Args:
            optimizer: its first parameter group counts.
            steps: optimizer steps to come.
            scheduler: is simulated on a copy; None keeps the learning rate constant.
            steps_per_schedule: optimizer steps for each step of the scheduler (those of an epoch for a schedule by
                epochs).
            gradient_rms: needed for any optimizer but SGD.
            fine_tuning: whether the network is trained already; None sees it by its batch norms (`is_trained`).

        Raises:
            TrainingError: no steps, an adaptive optimizer without `gradient_rms`, or a schedule that cannot be
                simulated (one that waits for a metric).
        """
        if not isinstance(steps, int) or not isinstance(steps_per_schedule, int) or min(steps, steps_per_schedule) < 1:
            raise TrainingError(
                f"expected whole numbers of at least 1, got steps={steps}, steps_per_schedule={steps_per_schedule}"
            )
        adaptive = not isinstance(optimizer, torch.optim.SGD)
        if adaptive and gradient_rms is None:
            raise TrainingError(
                f"{type(optimizer).__name__} moves weights by its learning rate whatever the gradient; the automatic "
                "loss weight needs gradient_rms=: that of the task's gradient, measured by training.gradient_rms "
                "after one backward pass; or set loss_weight to a number"
            )
        try:
            reach = _reach(optimizer, steps, scheduler, steps_per_schedule, adaptive)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise TrainingError(
                f"the schedule cannot be simulated for {steps} steps ({type(error).__name__}: {error}); set "
                "loss_weight to a number"
            ) from error
        run = cls(steps, reach, gradient_rms if adaptive else None)
        return run if fine_tuning is None else run._with_pull(fine_tuning)

    def for_network(self, model: nn.Module) -> TrainingRun:
        """The same run with a pull that suits the network, where none is given: more for one that begins to train."""
        return self if self.pull is not None else self._with_pull(is_trained(model))

    def _with_pull(self, fine_tuning: bool) -> TrainingRun:
        if fine_tuning:
            return replace(self, pull=min(_PULL_OF_TRAINED_NETWORKS, self.steps / _STEPS_TO_PULL_ONCE))
        return replace(self, pull=max(_PULL_OF_LONG_RUNS, _PULL_OF_SHORT_RUNS / math.sqrt(self.steps)))


def _reach(
    optimizer: Optimizer, steps: int, scheduler: LRScheduler | None, steps_per_schedule: int, adaptive: bool
) -> float:
    simulated = copy.deepcopy(scheduler) if scheduler is not None else None
    group = (optimizer if simulated is None else simulated.optimizer).param_groups[0]
    reach = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the copy's optimizer is not stepped, which torch warns of
        for step in range(steps):
            reach += float(group["lr"]) / (1.0 if adaptive else 1.0 - float(group.get("momentum", 0.0)))
            if simulated is not None and (step + 1) % steps_per_schedule == 0 and step + 1 < steps:
                simulated.step()
    return reach


def is_trained(model: nn.Module) -> bool:
    """Whether a batch norm of the model has the statistics of data; a model without any counts as not trained."""
    return any(
        norm.running_var is not None and not torch.equal(norm.running_var, torch.ones_like(norm.running_var))
        for norm in model.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
    )


def automatic_loss_weight(run: TrainingRun, predicted_weights: int, mean_residual: float) -> float:
    """The loss weight that pulls by `run.pull` times the mean residual over the run.

    Args:
        run: the run to come; without a pull it counts as a training from the beginning.
        predicted_weights: Z, the number of predicted weights.
        mean_residual: mean |residual| at the start, in units of weight: the inter-layer loss before training.

    Returns:
        The weight. Under an adaptive optimizer a step moves a weight by `lr * r / sqrt(1 + r^2)`, where r is the ratio
        of the inter-layer gradient to the task's; r is capped at 3, where that is 95 % of what can be had.

    Raises:
        TrainingError: the run does not move weights.
    """
    if not run.reach > 0:
        raise TrainingError(f"the sum of the learning rates of the run is {run.reach}, expected more than 0")
    pull = run._with_pull(fine_tuning=False).pull if run.pull is None else run.pull
    assert pull is not None
    ratio = pull * mean_residual / run.reach
    if run.gradient_rms is None:
        return ratio * predicted_weights
    relative = ratio / math.sqrt(1 - ratio**2) if ratio < 1 else math.inf
    return min(relative, _MAX_GRADIENT_RATIO) * run.gradient_rms * predicted_weights


def pull_of_fine_tuning(steps: int) -> float:
    """The pull of `fine_tune`, which quantizes in the loop: 1 where there is time for it, less in a short run.

    Its results are in docs/alignment.md. There, on Fashion-MNIST, 702 steps make it a weight of 21.
    """
    return min(1.0, steps / _STEPS_TO_PULL_ONCE)


def gradient_rms(weights: Iterable[Tensor]) -> float:
    """Root mean square of the gradients that a backward pass of the task's loss has left on some weights.

    Raises:
        TrainingError: no gradient is there yet.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients:
        raise TrainingError("no gradients; call backward on the task's loss first")
    squares = sum(float(gradient.double().square().sum()) for gradient in gradients)
    return math.sqrt(squares / sum(gradient.numel() for gradient in gradients))


def task_gradient_rms(model: nn.Module, loss: Callable[[], Tensor], weights: Iterable[Tensor]) -> float:
    """The same of one backward pass in eval mode, after which the model has no gradients.

    Args:
        model: the model.
        loss: computes the task's loss.
        weights: leaves of the graph count.
    """
    with evaluating(model):
        loss().backward()  # type: ignore[no-untyped-call]
    size = gradient_rms(weight for weight in weights if weight.is_leaf)
    model.zero_grad(set_to_none=True)
    return size
