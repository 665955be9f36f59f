"""A short, plain training: SGD with Nesterov momentum, one-cycle learning rate, and the inter-layer loss if wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.training import InterLayerLoss, TrainingRun
from ilwp_plugin.training.loop import Loop
from ilwp_plugin.zoo.data import Dataset

__all__ = ["Recipe", "accuracy", "train"]

Report = Callable[[int, float], None]
"""(step, loss) after each step."""


@dataclass(frozen=True)
class Recipe:
    """How to train. The momentum, weight decay and schedule are those of the numbers in the README.

    Attributes:
        lr: highest learning rate; None is 0.1, or 0.05 for a network without batch norms, which 0.1 can break.
    """

    epochs: int
    batch: int = 256
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0

    def steps(self, data: Dataset) -> int:
        """Optimizer steps of the whole training; an incomplete last batch of an epoch is left out.

        Raises TrainingError where there would be none.
        """
        if self.epochs < 1 or not 1 <= self.batch <= len(data.train_images):
            raise TrainingError(
                f"{self.epochs} epochs in batches of {self.batch} of {len(data.train_images)} images make no step"
            )
        return self.epochs * (len(data.train_images) // self.batch)


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    config: IlwpConfig | None = None,
    report: Report | None = None,
    checkpoint: Path | None = None,
) -> InterLayerLoss | None:
    """Train a classifier in place.

    Interrupted, and called again with the same arguments and a model of the same initial weights, it goes on from the
    checkpoint and ends with the same bits.

    Args:
        model: the model, in its initial state; it is trained on the device that it is on.
        data: the data set.
        recipe: length and rates.
        config: adds the inter-layer loss, with the weight of this configuration; None trains without it.
        report: is told each step's loss.
        checkpoint: a file that is written after each epoch and, where it exists, resumed from.

    Returns:
        The inter-layer loss, with the weight it chose.

    Raises:
        TrainingError: the recipe makes no step.
        FileError: the checkpoint cannot be written, or is none of such a training.
    """
    steps = recipe.steps(data)
    steps_per_epoch = steps // recipe.epochs
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    lr = recipe.lr or (0.1 if normed else 0.05)
    optimizer = torch.optim.SGD(
        model.parameters(), lr, momentum=recipe.momentum, nesterov=True, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    regularizer = None
    if config is not None:
        regularizer = InterLayerLoss(model, config, run=TrainingRun.of(optimizer, steps, schedule))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    device = next(model.parameters()).device
    images = data.train_images.contiguous(memory_format=torch.channels_last).to(device)
    labels = data.train_labels.to(device)
    order = torch.Generator().manual_seed(recipe.seed)
    model.train()
    loop = Loop(model, optimizer, schedule, {"order": _Generator(order)}, checkpoint=checkpoint)
    done = loop.resume()
    for step in range(done, steps):
        if step % steps_per_epoch == 0:
            if step > done:
                loop.save()
            shuffled = torch.randperm(len(data.train_images), generator=order)
        at = step % steps_per_epoch * recipe.batch
        chosen = shuffled[at : at + recipe.batch]
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        value = loop.step(loss if regularizer is None else loss + regularizer())
        if report is not None:
            report(step + 1, value)
    return regularizer


class _Generator:
    """A generator of random numbers in a checkpoint."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> torch.Tensor:
        return self._generator.get_state()

    def load_state_dict(self, state: torch.Tensor) -> None:
        self._generator.set_state(state)


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset, batch: int = 1000) -> float:
    """Share of the test images that are classified right, in per cent.

    Args:
        model: gives logits, (images, classes); is left in eval mode.
        data: whose test images are taken.
        batch: images at a time.
    """
    model.eval()
    right = 0
    for at in range(0, len(data.test_images), batch):
        logits = model(data.test_images[at : at + batch])
        right += int((logits.argmax(dim=1) == data.test_labels[at : at + batch]).sum())
    return 100 * right / len(data.test_images)
