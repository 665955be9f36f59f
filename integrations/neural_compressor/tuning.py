"""The smallest file that is accurate enough."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neural_compressor.common.base_tuning import ConfigSet, TuningConfig
from neural_compressor.torch.quantization import quantize
from torch import nn

from ilwp_plugin import estimate
from ilwp_plugin.errors import ConfigError, TrainingError

from .algorithm import calibration_of
from .config import IlwpConfig, core_config
from .saving import describe
from .state import attached, qconfig

__all__ = ["Trial", "Tuned", "autotune"]


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        config: without sets of values.
        file_bytes: size of the file that `save` writes.
        result: of the user's `eval_fn`.
        passed: whether it meets the criterion.
    """

    config: IlwpConfig
    file_bytes: int
    result: float
    passed: bool


@dataclass(frozen=True)
class Tuned:
    """What `autotune` found.

    Attributes:
        model: converted; `save` writes it.
        config: the configuration with the smallest file of those that passed.
        baseline: result of the model as it was.
        trials: all that were tried, in order.
    """

    model: nn.Module
    config: IlwpConfig
    baseline: float
    trials: tuple[Trial, ...]


def autotune(
    model: nn.Module,
    tune_config: TuningConfig,
    eval_fn: Callable[..., float],
    eval_args: Any = None,
    run_fn: Callable[..., Any] | None = None,
    run_args: Any = None,
    example_inputs: Any = None,
    criterion: Callable[[float, float], bool] | None = None,
) -> Tuned:
    """Find the configuration with the smallest file that meets a criterion.

    INC's own `autotune` takes configurations of ilwp, too, but it stops at the first that passes in the order in which
    they are written, returns the most accurate one where none passes, and None where two are equal.

    Without `run_fn` the sizes are known beforehand, and the first to pass, from the smallest on, is the answer. With
    `run_fn`, which may train, all are tried.

    Args:
        model: stays as it is.
        tune_config: `config_set` of `IlwpConfig`, with sets of values or without; `max_trials`; `tolerable_loss`,
            relative.
        eval_fn: takes the model (and `eval_args`) and returns a number, higher is better.
        run_fn, run_args, example_inputs: see `quantize`.
        criterion: takes the results before and after and says whether that is good enough, instead of `tolerable_loss`.

    Raises:
        ConfigError: no configuration, two equal ones, one of another algorithm, or a result that is no number.
        TrainingError: none meets the criterion; the message has the nearest.
    """
    candidates = _candidates(tune_config, model, example_inputs)
    accept = criterion or (lambda before, after: after >= before * (1 - tune_config.tolerable_loss))

    def evaluate(candidate: nn.Module, what: str) -> float:
        result = eval_fn(candidate, *(eval_args or ()))
        try:
            number = float(result)
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number):
            raise ConfigError(f"eval_fn returned {result!r} for {what}; expected a number, higher is better")
        return number

    baseline = evaluate(copy.deepcopy(model), "the model as it is")
    trials: list[Trial] = []
    best: tuple[Trial, nn.Module] | None = None
    for _, config in candidates[: tune_config.max_trials]:
        quantized = quantize(
            copy.deepcopy(model), config, run_fn=run_fn, run_args=run_args, example_inputs=example_inputs
        )
        result = evaluate(quantized, str(config.to_dict()))
        found = attached(quantized)
        assert found.compressed is not None  # candidates that quantize nothing are refused
        file = found.compressed.with_others_of(quantized, describe(qconfig(quantized), found.config))
        trial = Trial(config, file.ledger.file_bytes, result, bool(accept(baseline, result)))
        trials.append(trial)
        if trial.passed and (best is None or trial.file_bytes < best[0].file_bytes):
            best = trial, quantized
            if run_fn is None:
                break
    if best is None:
        nearest_miss = max(trials, key=lambda trial: trial.result)
        raise TrainingError(
            f"none of the {len(trials)} configurations tried, of {len(candidates)}, meets the criterion: the model has "
            f"{baseline:g}, the best of them {nearest_miss.result:g} with {nearest_miss.config.to_dict()}; try more "
            "bits, training (run_fn), more trials (max_trials) or a weaker criterion"
        )
    return Tuned(best[1], best[0].config, baseline, tuple(trials))


def _candidates(tune_config: TuningConfig, model: nn.Module, example_inputs: Any) -> list[tuple[int, IlwpConfig]]:
    """The configurations, and the bytes of the file of each for the model as it is; smallest first."""
    given = tune_config.config_set
    given = given if isinstance(given, list) else [given]
    if not given:
        raise ConfigError("config_set is empty")
    for config in given:
        if not isinstance(config, IlwpConfig):
            raise ConfigError(
                f"config_set holds a {type(config).__name__}; this autotune compares files of ilwp, INC's own any"
            )
    if tune_config.max_trials < 1:
        raise ConfigError(f"max_trials: expected 1 or more, got {tune_config.max_trials}")
    configs: list[IlwpConfig] = ConfigSet.generate_config_list(given)
    for number, config in enumerate(configs):
        if config in configs[:number]:
            raise ConfigError(f"config_set holds the same configuration twice: {config.to_dict()}")
        if not any(recipe.quantizes() for recipe in config.core().recipe_list()):
            raise ConfigError(
                f"the configuration quantizes nothing, so there is nothing to compare: {config.to_dict()}"
            )
    sizes = []
    for config in configs:
        mapping = config.to_config_mapping(model_info=config.get_model_info(model))
        core = core_config(mapping, model, example_inputs)
        calibration = calibration_of(core, example_inputs)
        metadata = describe(mapping, core)
        ledger = estimate(model, core, example_inputs=example_inputs, calibration=calibration, metadata=metadata)
        sizes.append(ledger.file_bytes)
    return sorted(zip(sizes, configs, strict=True), key=lambda candidate: candidate[0])
