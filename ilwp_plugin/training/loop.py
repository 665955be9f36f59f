"""The one training loop: optimizer steps on losses, and a checkpoint of everything that they change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ilwp_plugin.errors import TrainingError
from ilwp_plugin.training.checkpoints import reading_checkpoint, write_checkpoint

__all__ = ["Loop", "Resumable"]


class Resumable(Protocol):
    """What a checkpoint keeps."""

    def state_dict(self) -> Any:
        """Tensors, numbers, strings, and containers of them."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go on from such a state."""


class Loop:
    """One training of a model. The caller makes the batches and the losses; `step` does the rest.

        loop = Loop(model, optimizer, schedule, checkpoint=path)
        for step in range(loop.resume(), steps):
            loop.step(criterion(model(x), y))
            loop.save()

    Args:
        model: the model.
        optimizer: of its parameters.
        schedule: of the learning rate, told after each step.
        others: what else the training changes, by name.
        checkpoint: a file; None keeps nothing.
        identity: of the training, as JSON has it: a checkpoint with another one is refused.
        what: what the checkpoint is of, for messages.

    Attributes:
        done: steps that are done.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        others: Mapping[str, Resumable] | None = None,
        *,
        checkpoint: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        what: str = "this training",
    ) -> None:
        self._optimizer, self._schedule = optimizer, schedule
        self._parts: dict[str, Resumable] = {
            "model": model,
            "optimizer": optimizer,
            "schedule": schedule,
            **(others or {}),
        }
        self._path, self._identity, self._what = checkpoint, dict(identity or {}), what
        self.done = 0

    def resume(self) -> int:
        """Take up the checkpoint, where there is one; returns the steps that are done.

        Raises:
            FileError: it cannot be read, or does not fit.
            TrainingError: it is that of another training.
        """
        if self._path is None or not self._path.exists():
            return 0
        with reading_checkpoint(self._path, self._what) as content:
            theirs, states, self.done = dict(content["identity"]), content["parts"], int(content["step"])
        for name, mine in self._identity.items():
            if theirs.get(name) != mine:
                raise TrainingError(
                    f"{self._path}: the checkpoint of another run; its {name}: {theirs.get(name)}, now: {mine}. "
                    "Repeat that run, or delete the checkpoint"
                )
        with reading_checkpoint(self._path, self._what):
            for name, part in self._parts.items():
                part.load_state_dict(states[name])
        return self.done

    def save(self, *, write: bool = True) -> None:
        """Write the checkpoint.

        Args:
            write: False collects the states only, as every process of a group has to.
        """
        states = {name: part.state_dict() for name, part in self._parts.items()}
        if write and self._path is not None:
            write_checkpoint(self._path, {"identity": self._identity, "step": self.done, "parts": states})

    def step(self, loss: Tensor, freeze: tuple[Tensor, ...] = ()) -> float:
        """One optimizer step; returns the value of the loss.

        Args:
            loss: of a batch, a scalar.
            freeze: parameters that do not move in this step.

        Raises:
            TrainingError: the loss is not finite.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at step {self.done + 1}; lower the learning rate")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in freeze:
            parameter.grad = None
        self._optimizer.step()
        self._schedule.step()
        self.done += 1
        return value
