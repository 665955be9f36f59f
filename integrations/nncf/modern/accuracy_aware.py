"""Accuracy-aware training as NNCF 2 has it: until a model is compressed and good enough, or as sparse as it can be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ilwp_plugin.errors import ConfigError
from ilwp_plugin.validation import config_error

from .controller import CompressionStage, Controller

__all__ = ["AdaptiveLoop", "EarlyExitLoop", "LoopStatistics", "create_accuracy_aware_training_loop"]

Epochs = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1)]


class _Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    maximal_relative_accuracy_degradation: Number | None = None
    maximal_absolute_accuracy_degradation: Number | None = None
    maximal_total_epochs: Epochs = 10_000

    @model_validator(mode="after")
    def _one(self) -> _Params:
        given = (self.maximal_relative_accuracy_degradation, self.maximal_absolute_accuracy_degradation)
        if given.count(None) != 1:
            raise ValueError("give one of maximal_relative_ and maximal_absolute_accuracy_degradation")
        return self

    def least(self, accuracy: float) -> float:
        """The accuracy that is good enough, of the uncompressed model's."""
        if self.maximal_absolute_accuracy_degradation is not None:
            return accuracy - self.maximal_absolute_accuracy_degradation
        assert self.maximal_relative_accuracy_degradation is not None
        return accuracy * (1 - self.maximal_relative_accuracy_degradation / 100)


class _AdaptiveParams(_Params):
    initial_training_phase_epochs: Epochs = 5
    initial_compression_rate_step: Share = 0.1
    compression_rate_step_reduction_factor: Share = 0.5
    lr_reduction_factor: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.5
    minimal_compression_rate_step: Share = 0.025
    patience_epochs: Epochs = 3


class _EarlyExit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    mode: Literal["early_exit"]
    params: _Params


class _Adaptive(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    mode: Literal["adaptive_compression_level"]
    params: _AdaptiveParams


_MODES: dict[str, type[BaseModel]] = {"early_exit": _EarlyExit, "adaptive_compression_level": _Adaptive}


def _section(config: Mapping[str, Any]) -> Any:
    section = config.get("accuracy_aware_training")
    if not isinstance(section, Mapping) or section.get("mode") not in _MODES:
        raise ConfigError(
            f"accuracy_aware_training: expected an object whose mode is one of {', '.join(_MODES)}, got {section!r}"
        )
    model = _MODES[section["mode"]]
    try:
        return model.model_validate(dict(section))
    except ValidationError as error:
        raise config_error(error, model, "accuracy_aware_training") from None


@dataclass(frozen=True)
class LoopStatistics:
    """What a loop has come to.

    Attributes:
        uncompressed_accuracy: that of the uncompressed model, as it was given.
        compression_rate: of the model; None where no algorithm has one.
        compressed_accuracy: that of the model.
        accuracy_drop: the difference.
        accuracy_budget: how much more of a drop would have been allowed.
    """

    uncompressed_accuracy: float
    compression_rate: float | None
    compressed_accuracy: float
    accuracy_drop: float
    accuracy_budget: float

    def to_str(self) -> str:
        """As text."""
        return "\n".join(f"{name}: {value}" for name, value in vars(self).items())


class EarlyExitLoop:
    """Trains until the model is fully compressed and accurate enough, and returns the best one otherwise.

    Args:
        nncf_config: with a section `accuracy_aware_training`.
        compression_controller: of the model.
        uncompressed_model_accuracy: of the model before compression.
        options: further ones of NNCF 2, which concern its logs.

    Raises:
        ConfigError: the section is not valid.
    """

    def __init__(
        self,
        nncf_config: Mapping[str, Any],
        compression_controller: Controller,
        uncompressed_model_accuracy: float,
        **options: Any,
    ) -> None:
        self._params: Any = _section(nncf_config).params
        self._controller, self._reference = compression_controller, uncompressed_model_accuracy
        self._least = self._params.least(uncompressed_model_accuracy)
        self._accuracy, self._epoch = 0.0, 0
        self._best: tuple[tuple[float, float], dict[str, Any], dict[str, Any]] | None = None
        self._optimizer: Any = None
        self._lr_scheduler: Any = None

    @property
    def statistics(self) -> LoopStatistics:
        """Of the model as it is now."""
        return LoopStatistics(
            self._reference,
            self._controller.compression_rate,
            self._accuracy,
            self._reference - self._accuracy,
            self._accuracy - self._least,
        )

    def run(
        self,
        model: nn.Module,
        train_epoch_fn: Callable[..., Any],
        validate_fn: Callable[..., float],
        configure_optimizers_fn: Callable[[], tuple[Any, Any]] | None = None,
        dump_checkpoint_fn: Callable[..., Any] | None = None,
        load_checkpoint_fn: Callable[..., Any] | None = None,
        early_stopping_fn: Callable[[float], bool] | None = None,
        tensorboard_writer: Any = None,
        log_dir: Any = None,
        update_learning_rate_fn: Callable[[], None] | None = None,
    ) -> nn.Module:
        """Train.

        Args:
            model: of the controller.
            train_epoch_fn: trains for an epoch: (controller, model, epoch=, optimizer=, lr_scheduler=).
            validate_fn: (model, epoch=) gives the accuracy, more is better.
            configure_optimizers_fn: gives the optimizer and the learning-rate scheduler.
            dump_checkpoint_fn: told of each epoch: (model, controller, loop, log_dir).
            load_checkpoint_fn: not needed: the best model is kept in memory.
            early_stopping_fn: told the accuracy of each epoch; True ends the training.
            tensorboard_writer: not used.
            log_dir: given to `dump_checkpoint_fn`.
            update_learning_rate_fn: called after each epoch instead of the scheduler.

        Returns:
            The model.
        """
        self._train_epoch, self._validate, self._stop = train_epoch_fn, validate_fn, early_stopping_fn
        self._dump, self._log_dir, self._update = dump_checkpoint_fn, log_dir, update_learning_rate_fn
        self._configure = configure_optimizers_fn
        self._configured()
        self._score(model)
        self._loop(model)
        return model

    def _loop(self, model: nn.Module) -> None:
        if self._reached():
            return
        while self._epoch < self._params.maximal_total_epochs:
            self._train(model)
            if self._reached():
                return
            if self._stop is not None and self._stop(self._accuracy):
                break
        self._load_best(model)

    def _configured(self, factor: float = 1.0) -> None:
        if self._configure is not None:
            self._optimizer, self._lr_scheduler = self._configure()
            for group in getattr(self._optimizer, "param_groups", []):
                group["lr"] *= factor

    def _train(self, model: nn.Module) -> None:
        """An epoch."""
        self._controller.scheduler.epoch_step()
        self._train_epoch(
            self._controller,
            model,
            epoch=self._epoch,
            optimizer=self._optimizer,
            lr_scheduler=self._lr_scheduler,
        )
        self._epoch += 1
        self._score(model)
        if self._update is not None:
            self._update()
        elif isinstance(self._lr_scheduler, ReduceLROnPlateau):
            self._lr_scheduler.step(self._accuracy)
        elif self._lr_scheduler is not None:
            self._lr_scheduler.step()

    @torch.no_grad()
    def _score(self, model: nn.Module) -> None:
        self._accuracy = float(self._validate(model, epoch=self._epoch))
        if self._dump is not None:
            self._dump(model, self._controller, self, self._log_dir)
        rank = self._rank()
        if self._finished() and (self._best is None or rank > self._best[0]):
            states = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            self._best = rank, states, copy.deepcopy(self._controller.get_compression_state())

    def _rank(self) -> tuple[float, float]:
        """More is better."""
        return (0.0, self._accuracy)

    def _finished(self) -> bool:
        return self._controller.compression_stage() == CompressionStage.FULLY_COMPRESSED

    def _reached(self) -> bool:
        return self._finished() and self._accuracy >= self._least

    def _load_best(self, model: nn.Module) -> None:
        if self._best is not None:
            _, states, compression = self._best
            model.load_state_dict(states)
            self._controller.load_state(compression[Controller.CONTROLLER_STATE])
            self._accuracy = self._best[0][1]


class AdaptiveLoop(EarlyExitLoop):
    """Looks for the largest sparsity that is accurate enough: up by a step where it is, back by less where not.

    Args:
        nncf_config, compression_controller, uncompressed_model_accuracy, options: see `EarlyExitLoop`.
        minimal_compression_rate: the least sparsity to try.
        maximal_compression_rate: the largest one.

    Raises:
        ConfigError: the section is not valid, or no algorithm has a sparsity.
    """

    def __init__(
        self,
        nncf_config: Mapping[str, Any],
        compression_controller: Controller,
        uncompressed_model_accuracy: float,
        minimal_compression_rate: float = 0.0,
        maximal_compression_rate: float = 0.95,
        **options: Any,
    ) -> None:
        super().__init__(nncf_config, compression_controller, uncompressed_model_accuracy, **options)
        if compression_controller.compression_rate is None:
            raise ConfigError(
                "accuracy_aware_training: adaptive_compression_level needs magnitude_sparsity or rb_sparsity"
            )
        self._limits = minimal_compression_rate, maximal_compression_rate

    def _loop(self, model: nn.Module) -> None:
        params = self._params
        for _ in range(min(params.initial_training_phase_epochs, params.maximal_total_epochs)):
            self._train(model)
        step, direction, factor = params.initial_compression_rate_step, 0, 1.0
        while self._epoch < params.maximal_total_epochs:
            towards = 1 if self._accuracy >= self._least else -1
            if direction and towards != direction:
                step *= params.compression_rate_step_reduction_factor
                factor *= params.lr_reduction_factor
                if step < params.minimal_compression_rate_step:
                    break
            direction = towards
            before = self._controller.compression_rate or 0.0
            rate = min(max(before + towards * step, self._limits[0]), self._limits[1])
            if rate == before:
                break
            self._controller.compression_rate = rate
            self._configured(factor)
            for _ in range(max(1, params.patience_epochs)):
                self._train(model)
                if self._reached() or self._epoch >= params.maximal_total_epochs:
                    break
        self._load_best(model)

    def _finished(self) -> bool:
        return True

    def _rank(self) -> tuple[float, float]:
        rate = self._controller.compression_rate or 0.0
        return (1 + rate if self._accuracy >= self._least else 0.0, self._accuracy)


def create_accuracy_aware_training_loop(
    nncf_config: Mapping[str, Any],
    compression_ctrl: Controller,
    uncompressed_model_accuracy: float,
    **options: Any,
) -> EarlyExitLoop:
    """The loop that the config's section `accuracy_aware_training` asks for; see `EarlyExitLoop` for the arguments."""
    loops = {"early_exit": EarlyExitLoop, "adaptive_compression_level": AdaptiveLoop}
    return loops[_section(nncf_config).mode](nncf_config, compression_ctrl, uncompressed_model_accuracy, **options)
