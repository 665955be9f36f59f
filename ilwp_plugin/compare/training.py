"""Training on inside a method: short, plain, resumable, the same for every toolkit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import TensorDataset

from ilwp_plugin import toolkits
from ilwp_plugin.compare.methods import Case
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.recipes.base import AUTO
from ilwp_plugin.recipes.loss_weight import pull_of_fine_tuning, task_gradient_rms
from ilwp_plugin.training import InterLayerLoss, TrainingRun, distillation_loss
from ilwp_plugin.training.batch_norm import reestimate_batch_norms
from ilwp_plugin.training.fine_tuning import TaskLoss
from ilwp_plugin.training.loop import Loop
from ilwp_plugin.zoo import scope_layers

__all__ = ["Companion", "Distillation", "Optimizers", "Plan", "prepared", "train_on", "tuning_data"]

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
Optimizers = Literal["sgd", "adamw"]

NORM_BATCHES = 40
"""For the statistics of batch norms in the end, as in `fine_tune`."""


Distillation = Annotated[
    float,
    Field(
        strict=True, ge=0, le=1, description="Share of the loss that draws the outputs to those of the network before."
    ),
]


def tuning_data(case: Case, distillation: float) -> tuple[TensorDataset, TaskLoss]:
    """What `fine_tune` trains a classifier on, on the device of the case.

    Args:
        case: whose training images are taken.
        distillation: share of the loss that draws the outputs to those of the case's network, 0 to 1.

    Returns:
        Images, labels and, where there is such a share, the network's outputs; and the loss of a batch of these.
    """
    images = case.data.train_images
    parts = [images.contiguous(memory_format=torch.channels_last), case.data.train_labels]
    if distillation:
        model = case.model().to(case.device)
        with torch.no_grad():
            parts.append(torch.cat([model(part.to(case.device)).cpu() for part in torch.split(images, 1000)]))

    def loss(network: nn.Module, batch: list[Tensor]) -> Tensor:
        inputs, labels, *before = (values.to(case.device) for values in batch)
        outputs = network(inputs)
        if not before:
            return F.cross_entropy(outputs, labels)
        return distillation_loss(outputs, labels, *before, share=distillation)

    return TensorDataset(*parts), loss


class Companion:
    """What a toolkit does beside a training; this one does nothing."""

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins, counted from 0."""

    def begin_step(self) -> None:
        """A step begins."""

    def loss(self) -> Tensor | float:
        """What is added to the loss of a step."""
        return 0.0

    def state_dict(self) -> Any:
        """What a checkpoint keeps, of what `torch.load` takes for weights."""

    def load_state_dict(self, state: Any) -> None:
        """Go on from a checkpoint."""


@dataclass(frozen=True)
class Plan:
    """How a network is trained on; the learning rate falls to 0 by half a cosine.

    Attributes:
        epochs: passes over the training images.
        lr: learning rate at the start.
        optimizer: SGD with Nesterov momentum and weight decay, or AdamW without, which a rate term wants.
        distillation: share of the loss that draws the outputs to those of the network before, 0 to 1.
    """

    epochs: int
    lr: float
    optimizer: Optimizers = "sgd"
    distillation: float = 0.0

    def optimizer_of(self, model: nn.Module) -> Optimizer:
        """Of the parameters that train."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, self.lr, weight_decay=0.0)
        return torch.optim.SGD(parameters, self.lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)

    def steps(self, case: Case) -> int:
        """Optimizer steps of the whole training. Raises TrainingError where there would be none."""
        steps = self.epochs * (len(case.data.train_images) // case.settings.batch)
        if steps < 1:
            raise TrainingError(
                f"batches of {case.settings.batch} of {len(case.data.train_images)} images make no step; lower it"
            )
        return steps

    def loss_weight(self, model: nn.Module, config: IlwpConfig, case: Case) -> float:
        """The weight of the inter-layer loss: that of the configuration, or chosen as `fine_tune` chooses it.

        Args:
            model: a float model, before any training on.
            config: of ilwp.
            case: whose images are trained on.
        """
        if config.loss_weight == AUTO and config.rate > 0 and config.weight_step is not None:
            return 0.0
        steps = self.steps(case)
        pull = pull_of_fine_tuning(steps)
        run = TrainingRun(steps, steps * self.lr / 2 / (1 - MOMENTUM), pull=pull)
        if self.optimizer == "adamw":  # whose steps do not depend on the size of the gradient
            run = TrainingRun(steps, steps * self.lr / 2, _gradient_rms(model, case), pull)
        return InterLayerLoss(model, config, run=run, example_inputs=case.calibration(2)).loss_weight


def _gradient_rms(model: nn.Module, case: Case) -> float:
    """Of the task on depthwise weights, over one batch."""
    images, labels = (values[: case.settings.batch] for values in (case.data.train_images, case.data.train_labels))
    weights = [layer.weight for layer in scope_layers(model).values()]
    return task_gradient_rms(model, lambda: F.cross_entropy(model(images), labels), weights)


def prepared(case: Case, config: IlwpConfig | None) -> tuple[nn.Module, IlwpConfig | None]:
    """The trained network, aligned where the configuration says so, and what is left of the configuration.

    Raises MissingDependencyError where it is to be aligned without torch-pruning.
    """
    model = case.model()
    if config is None or not config.align:
        return model, config
    toolkits.load("pruning").align(model, case.calibration(16), config)
    return model, config.replace(align=False)


def train_on(model: nn.Module, case: Case, plan: Plan, companion: Companion | None = None) -> None:
    """Train a classifier on, in place; it is in eval mode afterwards.

    Interrupted, and called again with the same arguments and a model made in the same way, it goes on from the
    checkpoint in the case's folder, and ends with the same bits.

    Raises:
        TrainingError: the loss is no number any more.
        FileError: the checkpoint cannot be written, or is none of this training.
    """
    companion, path = companion or Companion(), case.folder / "training.pt"
    data, loss = tuning_data(case, plan.distillation)
    images, batch, seed = data.tensors[0], case.settings.batch, case.settings.seed
    steps = plan.steps(case)
    optimizer = plan.optimizer_of(model)
    schedule = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    torch.manual_seed(seed)
    loop = Loop(model, optimizer, schedule, {"companion": companion, "random": _RandomState()}, checkpoint=path)
    first = loop.resume() * plan.epochs // steps
    model.train()
    for epoch in range(first, plan.epochs):
        companion.begin_epoch(epoch)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for chosen in order[: steps // plan.epochs * batch].view(-1, batch):
            companion.begin_step()
            loop.step(loss(model, [values[chosen] for values in data.tensors]) + companion.loss())
        loop.save()
    model.eval()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed * 1_000_003 + plan.epochs))
    chosen = order[: min(NORM_BATCHES, len(images) // batch) * batch].view(-1, batch)
    reestimate_batch_norms(model, (images[numbers] for numbers in chosen), lambda network, x: network(x))


class _RandomState:
    """torch's generator in a checkpoint."""

    def state_dict(self) -> Tensor:
        return torch.get_rng_state()

    def load_state_dict(self, state: Tensor) -> None:
        torch.set_rng_state(state)
