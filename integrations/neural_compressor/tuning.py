"""The smallest file that is accurate enough."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from neural_compressor.common.base_config import BaseConfig
from neural_compressor.common.base_tuning import TuningConfig
from neural_compressor.torch.quantization import quantize
from torch import nn

from ilwp_plugin.errors import ConfigError, TrainingError

from .composition import Composition
from .config import IlwpConfig
from .inputs import Examples, read_examples
from .saving import compressed_of
from .stacking import stack

__all__ = ["Trial", "Tuned", "autotune"]

Candidate: TypeAlias = Any
"""A configuration for `quantize`, or configurations for `stack`."""

_KEPT_BYTES = 1 << 30
"""Models that are kept between making and evaluating them; larger ones are made twice."""


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        config: without sets of values; of a stack a list.
        file_bytes: size of the file that `save` writes.
        result: of the user's `eval_fn`.
        passed: whether it meets the criterion.
    """

    config: Any
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
    config: Any
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

    All files are made first. Without `run_fn` the first to pass, from the smallest on, is the answer. With `run_fn`,
    which may train, all are tried, in the order of the sizes before.

    Args:
        model: stays as it is.
        tune_config: `config_set` of `IlwpConfig`, of what `compose` makes, and of lists of configurations for `stack`,
            with sets of values or without; `max_trials`; `tolerable_loss`, relative.
        eval_fn: takes the model (and `eval_args`) and returns a number, higher is better.
        run_fn, run_args: see `quantize`.
        example_inputs: see `quantize` and `stack`; they are read once.
        criterion: takes the results before and after and says whether that is good enough, instead of `tolerable_loss`.

    Raises:
        ConfigError: no configuration, two equal ones, one without ilwp, or a result that is no number.
        TrainingError: none meets the criterion; the message has the nearest.
    """
    candidates = _candidates(tune_config)
    accept = criterion or (lambda before, after: after >= before * (1 - tune_config.tolerable_loss))
    examples = read_examples(model, example_inputs)
    maker = _Maker(model, examples, run_fn, tuple(run_args or ()))

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
    made = maker.all(candidates)
    trials: list[Trial] = []
    best: tuple[Trial, nn.Module] | None = None
    for number in range(min(len(candidates), tune_config.max_trials)):
        config, size, quantized = made[number]
        if quantized is None:
            quantized, size = maker.one(config, train=True)
        result = evaluate(quantized, _described(config))
        trial = Trial(config, size, result, bool(accept(baseline, result)))
        trials.append(trial)
        if trial.passed and (best is None or trial.file_bytes < best[0].file_bytes):
            best = trial, quantized
            if run_fn is None:
                break
    if best is None:
        nearest_miss = max(trials, key=lambda trial: trial.result)
        raise TrainingError(
            f"none of the {len(trials)} configurations tried, of {len(candidates)}, meets the criterion: the model has "
            f"{baseline:g}, the best of them {nearest_miss.result:g} with {_described(nearest_miss.config)}; try more "
            "bits, training (run_fn), more trials (max_trials) or a weaker criterion"
        )
    return Tuned(best[1], best[0].config, baseline, tuple(trials))


class _Maker:
    """Makes what a configuration gives."""

    def __init__(
        self, model: nn.Module, examples: Examples, run_fn: Callable[..., Any] | None, run_args: tuple[Any, ...]
    ) -> None:
        self._model, self._examples, self._run_fn, self._run_args = model, examples, run_fn, run_args

    def one(self, candidate: Candidate, *, train: bool) -> tuple[nn.Module, int]:
        """The model, with or without its training, and the bytes of its file."""
        own = copy.deepcopy(self._model)
        run_fn = self._run if train and self._run_fn is not None else None
        if isinstance(candidate, BaseConfig):
            made: nn.Module = quantize(own, candidate, run_fn=run_fn, example_inputs=self._examples)
        else:
            made = stack(own, candidate, self._examples, run_fn=run_fn)
        return made, compressed_of(made).ledger.file_bytes

    def _run(self, model: nn.Module) -> Any:
        assert self._run_fn is not None
        return self._run_fn(model, *self._run_args)

    def all(self, candidates: Sequence[Candidate]) -> list[tuple[Candidate, int, nn.Module | None]]:
        """Each candidate with the bytes of its file without training, smallest first; with the models where these are
        what is asked for, and small."""
        total = len(candidates) * sum(tensor.nbytes for tensor in self._model.state_dict().values())
        found: list[tuple[Candidate, int, nn.Module | None]] = []
        for candidate in candidates:
            made, size = self.one(candidate, train=False)
            found.append((candidate, size, made if total < _KEPT_BYTES and self._run_fn is None else None))
        return sorted(found, key=lambda entry: entry[1])


def _described(candidate: Candidate) -> str:
    return str(candidate.to_dict() if isinstance(candidate, BaseConfig) else [c.to_dict() for c in candidate])


def _candidates(tune_config: TuningConfig) -> list[Candidate]:
    """The configurations without sets of values."""
    given = tune_config.config_set
    given = given if isinstance(given, list) else [given]
    if not given:
        raise ConfigError("config_set is empty")
    if tune_config.max_trials < 1:
        raise ConfigError(f"max_trials: expected 1 or more, got {tune_config.max_trials}")
    candidates: list[Candidate] = []
    for config in given:
        if isinstance(config, (IlwpConfig, Composition)):
            candidates += config.expand()
        elif isinstance(config, (list, tuple)) and config and all(isinstance(c, BaseConfig) for c in config):
            candidates += [list(chosen) for chosen in itertools.product(*(c.expand() for c in config))]
        else:
            raise ConfigError(
                f"config_set holds a {type(config).__name__}; this autotune compares files of ilwp: of IlwpConfig, of "
                "compose(...) with one, and of lists of configurations for stack. INC's own takes any"
            )
    for number, candidate in enumerate(candidates):
        if candidate in candidates[:number]:
            raise ConfigError(f"config_set holds the same configuration twice: {_described(candidate)}")
        if isinstance(candidate, IlwpConfig) and not any(r.quantizes() for r in candidate.core().recipe_list()):
            raise ConfigError(
                f"the configuration quantizes nothing, so there is nothing to compare: {candidate.to_dict()}"
            )
    return candidates
