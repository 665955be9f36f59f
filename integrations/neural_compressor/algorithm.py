"""The algorithm as INC calls it: prepare, train, convert."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from neural_compressor.common.utils import Mode
from neural_compressor.torch.algorithms.base_algorithm import Quantizer
from torch import Tensor, nn

from ilwp_plugin import CompressedModel, compress
from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.models.tensors import array_of
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs
from ilwp_plugin.recipes.ilwp import Ilwp
from ilwp_plugin.training import FakeQuantizer, Parts, TrainingRun

from .composition import ALGORITHM, Operator
from .config import core_config
from .inputs import ENOUGH, Examples, Recorder, read_examples
from .state import Attached, attach, attached, found_at, operators_of, release

__all__ = ["IlwpQuantizer", "Regularizer", "calibration_of", "entry", "regularizer"]

_log = logging.getLogger("ilwp_plugin.neural_compressor")  # what users set is the logger `ilwp_plugin`


class Regularizer(nn.Module):
    """The weighted losses of all recipes at a prepared model; calling it takes no arguments and returns a scalar.

    Args:
        parts: of the recipes.
        model: the prepared model.
        run: the training to come.
    """

    def __init__(self, parts: Parts, model: nn.Module, run: TrainingRun | None) -> None:
        super().__init__()
        self._parts = [parts]  # a list: their parameters are not this module's
        if parts.ilwp is not None:
            parts.ilwp.choose_loss_weight(
                run,
                model,
                "loss_weight='auto' scales the weight to the length of the training: pass "
                "run=TrainingRun.of(optimizer, steps, scheduler), or set loss_weight to a number",
            )

    @property
    def loss_weight(self) -> float:
        """Of the inter-layer loss; may be changed at any time, by a schedule for example."""
        own = self._parts[0].ilwp
        return 0.0 if own is None else own.loss_weight

    @loss_weight.setter
    def loss_weight(self, value: float) -> None:
        own = self._parts[0].ilwp
        if own is None:
            raise TrainingError("loss_weight: the model has no layers that predict each other")
        own.loss_weight = value

    def value(self) -> Tensor:
        """The inter-layer loss without its weight: the mean |residual| of the predicted weights."""
        own = self._parts[0].ilwp
        return torch.zeros(()) if own is None else own.inter_layer_loss()

    def forward(self) -> Tensor:
        return self._parts[0].loss()


def regularizer(model: nn.Module, run: TrainingRun | None = None) -> Regularizer:
    """What to add to the loss in the training loop: the losses of all recipes, the inter-layer loss among them.

    Args:
        model: as `prepare` returned it, or as `run_fn` gets it.
        run: the training to come; needed where `loss_weight` is "auto".

    Raises:
        TrainingError: the model is converted already.
    """
    found = attached(model)
    if found.quantizer is None:
        raise TrainingError("the model is converted already; prepare it, train it, convert it")
    return Regularizer(found.quantizer.parts, model, run)


def calibration_of(config: CoreConfig, examples: Examples) -> CalibrationInputs | None:
    """The examples that calibrate under a configuration; None where it has nothing to calibrate, or they are few.

    Few ones calibrate only what cannot do without them.
    """
    recipes, found = config.recipe_list(), examples.calibration
    if found is None or not any(recipe.quantizes() for recipe in recipes if not isinstance(recipe, Ilwp)):
        return None
    if found.size < ENOUGH:
        try:
            for recipe in recipes:
                recipe.check(False)
        except ConfigError:
            return found
        _log.info(
            "%d example inputs trace the model; %d or more, or a run_fn that runs the model, also calibrate it, which "
            "makes the file several times smaller",
            found.size,
            ENOUGH,
        )
        return None
    return found


class IlwpQuantizer(Quantizer):  # type: ignore[misc]
    """ilwp under INC's interface of algorithms.

    Args:
        config: the core's.
        examples: for the execution order, where a symbolic trace does not find it; and for calibration.
    """

    def __init__(self, config: CoreConfig, examples: Examples | None = None) -> None:
        super().__init__({ALGORITHM: config})
        self.config, self.examples = config, examples or Examples()

    def quantize(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """All at once; where nothing is to run in between, there is nothing to prepare."""
        run_fn = kwargs.get("run_fn")
        if run_fn is not None:
            prepared = self.prepare(model)
            try:
                run_fn(prepared, *(kwargs.get("run_args") or ()))
            except BaseException:  # Ctrl-C among them
                release(prepared)
                raise
            return self.convert(prepared)
        found = Attached(self.config, self._operators(model), self.examples)
        found.compressed = _post_training(model, found, calibration_of(self.config, self.examples))
        attach(model, found)
        return model

    @staticmethod
    def _operators(model: nn.Module) -> list[Operator]:
        earlier = found_at(model)
        if earlier is not None and earlier.quantizer is not None:
            raise TrainingError("the model is prepared already; convert it first")
        return operators_of(model)

    def prepare(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """Let the model compute with what the file will restore; losses come from `regularizer`."""
        operators = self._operators(model)
        quantizer = FakeQuantizer(
            model,
            self.config,
            example_inputs=self.examples.batch,
            calibration=calibration_of(self.config, self.examples),
            loss_alone=True,
        )
        attach(model, Attached(self.config, operators, self.examples, quantizer, Recorder(model), _digest(model)))
        return model

    def convert(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """Bake what the file restores into the model: what it has trained with, or what calibration gives."""
        found = attached(model)
        if found.quantizer is None or found.recorder is None:
            raise TrainingError("the model is converted already")
        trained = found.prepared != _digest(model)
        (quantizer, found.quantizer), (recorder, found.recorder) = (found.quantizer, None), (found.recorder, None)
        quantizer.remove()
        seen = recorder.stop(model)
        if not found.quantizes:
            return model
        calibration = calibration_of(found.config, found.examples)
        if trained:
            found.compressed = quantizer.compressed(model, calibration=calibration)
            found.compressed.apply_to(model)
        else:
            found.compressed = _post_training(model, found, calibration_of(found.config, seen) or calibration)
        return model


def _post_training(model: nn.Module, found: Attached, calibration: CalibrationInputs | None) -> CompressedModel:
    """The file of a model that was not trained for it, which the model then is."""
    compressed = compress(model, found.config, example_inputs=found.examples.batch, calibration=calibration)
    compressed.apply_to(model)
    return compressed


def _digest(model: nn.Module) -> str:
    """Equal as long as no tensor of the model changes; training changes some, calibration none."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in model.state_dict().values():
        digest.update(array_of(tensor).tobytes())
    return digest.hexdigest()


def entry(
    model: nn.Module,
    configs_mapping: Mapping[Operator, Any],
    mode: Mode = Mode.QUANTIZE,
    *args: Any,
    run_fn: Callable[..., Any] | None = None,
    run_args: Any = None,
    example_inputs: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """What INC calls."""
    found = found_at(model)
    if mode is Mode.CONVERT and found is not None:
        quantizer = IlwpQuantizer(found.config)
    else:
        examples = read_examples(model, example_inputs)
        quantizer = IlwpQuantizer(core_config(configs_mapping, model, examples.batch), examples)
        if mode is Mode.CONVERT:  # INC converts what is not prepared, too
            quantizer.prepare(model)
    with torch.enable_grad():  # run_fn may train
        done: nn.Module = quantizer.execute(model, mode, run_fn=run_fn, run_args=run_args)
    return done
