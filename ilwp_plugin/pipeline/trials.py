"""Files tried until one meets a target: the plan is made once, and each trial quantizes only."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ilwp_plugin._version import __version__
from ilwp_plugin.errors import CalibrationError, ConfigError, IlwpWarning
from ilwp_plugin.method.provenance import Origin
from ilwp_plugin.models.surroundings import as_user
from ilwp_plugin.models.tensors import array_of
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs
from ilwp_plugin.pipeline.file import CompressedModel, untouched
from ilwp_plugin.pipeline.plan import Plan, Progress
from ilwp_plugin.pipeline.quantize import few
from ilwp_plugin.pipeline.target import NotMet, best_within_size, smallest_within_drop
from ilwp_plugin.pipeline.trial_log import Log, Trial, open_log
from ilwp_plugin.recipes.base import Knobs, Recipe
from ilwp_plugin.recipes.grid import CALIBRATED_DEAD_ZONE

__all__ = ["Evaluate", "Job", "Met", "meet_target"]

Evaluate = Callable[[nn.Module], float]

EXPECTED_TRIALS = 15
"""Of a search; only for the progress bar."""

NARROW_DEAD_ZONE = 0.58
"""The second one that is tried where there are calibration inputs."""


class Job(Protocol):
    """A plan that can be run at any steps."""

    @property
    def plan(self) -> Plan: ...

    @property
    def calibration(self) -> CalibrationInputs | None: ...

    def at(self, knobs: Knobs) -> list[Recipe]:
        """The recipes of the plan at other steps."""

    def run(self, recipes: list[Recipe] | None, metadata: Mapping[str, Any] | None) -> CompressedModel:
        """One file."""


def meet_target(
    job: Job,
    targets: Mapping[str, float | None],
    *,
    evaluate: Evaluate | None = None,
    evaluation: str | None = None,
    resume: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Met:
    """The steps that meet a target; see `compress`.

    Args:
        job: what is tried.
        targets: one of `max_drop`, `target_bytes` and `target_bits_per_weight` is set.
        evaluate: what a model scores, more is better.
        evaluation: a name of what it measures.
        resume: a file that keeps the trials.
        metadata: is part of each file.
        progress: is told the trials.

    Raises:
        ConfigError: more than one target, or one that the arguments do not allow; or the trials in the file are those
            of another search.
        CalibrationError: the target cannot be met.
        FileError: the trials cannot be read or written, or another search writes them.
    """
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(f"one target at a time, got {sorted(given)}")
    (kind, target), *_ = given.items()
    if target < 0 or not math.isfinite(target):
        raise ConfigError(f"{kind}: expected a finite number >= 0, got {target!r}")
    if kind == "max_drop" and (evaluate is None or job.plan.network.runnable() is None):
        raise ConfigError("max_drop: needs a module and `evaluate`, to see what the restored model scores")
    if not any(recipe.at(Knobs(1.0, 0.5)) is not None for recipe in job.plan.recipes):
        raise ConfigError(f"{kind}: no recipe of the configuration has steps that could be searched")
    search = _Search(job, kind, target, evaluate, metadata, progress)
    with open_log(resume, _fingerprint(job, given, metadata, search.scores, evaluation), search.scores) as log:
        if evaluation is None:
            search.ask_again(log, resume)
        try:
            found = search.run(log)
        except NotMet as error:
            raise CalibrationError(search.obstacles(log) or str(error)) from None
    return Met(found.knobs, lambda compressed: search.check(compressed, found, resume))


@dataclass(frozen=True)
class Met:
    """What meets a target.

    Attributes:
        knobs: the steps.
        check: raises CalibrationError where a file at these steps does not meet the target after all.
    """

    knobs: Knobs
    check: Callable[[CompressedModel], None]


class _Search:
    """One search for a target."""

    def __init__(
        self,
        job: Job,
        kind: str,
        target: float,
        evaluate: Evaluate | None,
        metadata: Mapping[str, Any] | None,
        progress: Progress | None,
    ) -> None:
        self._job, self._kind, self._target, self._evaluate = job, kind, target, evaluate
        self._metadata, self._progress = metadata, progress
        module = job.plan.network.module
        self.scores = evaluate is not None and job.plan.network.runnable() is not None
        parameters = job.plan.network.state.values() if module is None else module.parameters()
        weights = [tensor for tensor in parameters if tensor.is_floating_point()]
        numel = sum(weight.numel() for weight in weights)
        self._limit = target if kind == "target_bytes" else target * numel / 8
        spread = torch.cat([w.detach().flatten().float().cpu() for w in weights] or [torch.ones(1)]).std()
        self._start = max(float(spread.nan_to_num()), 1e-6)
        self._before: float | None = None
        self._own: set[Knobs] = set()

    def run(self, log: Log) -> Trial:
        """The best trial. Raises NotMet."""
        zones = (CALIBRATED_DEAD_ZONE, NARROW_DEAD_ZONE) if self._job.calibration is not None else (0.5,)
        if self._kind == "max_drop":
            self._before = self._score(None)
            assert self._before is not None
            return smallest_within_drop(self._try, log, self._start, zones, self._before, self._target)
        zones = zones if self._evaluate is not None else zones[:1]
        return best_within_size(self._try, log, self._start, zones, self._limit)

    def _try(self, knobs: Knobs) -> Trial:
        self._own.add(knobs)
        tried = len(self._own)
        if self._progress is not None:
            self._progress(f"trial with a step of {knobs.weight_step:.3g}", tried, max(tried, EXPECTED_TRIALS))
        compressed = self._file(knobs)
        return Trial(knobs, compressed.ledger.file_bytes, self._score(compressed))

    def _file(self, knobs: Knobs) -> CompressedModel:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IlwpWarning)  # said once, by the last compression
            return self._job.run(self._job.at(knobs), self._metadata)

    def _score(self, compressed: CompressedModel | None) -> float | None:
        """Of what a file restores; of the model itself without one."""
        if self._evaluate is None or not self.scores:
            return None
        restored = self._job.plan.network.evaluated(None if compressed is None else compressed.state_dict())
        with as_user():
            score = self._evaluate(restored)
        try:
            return float(score)
        except (TypeError, ValueError):
            raise ConfigError(f"evaluate returned {score!r}; expected a number, more is better") from None

    def ask_again(self, log: Log, path: str | os.PathLike[str] | None) -> None:
        """Make one of the trials that were read again: nothing else tells whether `evaluate` is the same."""
        if not self.scores or not log.trials:
            return
        known = list(log.trials.values())[-1]
        again = self._try(known.knobs)
        assert known.score is not None and again.score is not None
        if not _close(known.score, again.score):
            raise ConfigError(
                f"{os.fspath(path or '')}: `evaluate` gives {again.score:g} where that of these trials gave "
                f"{known.score:g}; give a new path. Where it measures the same with noise, `evaluation` names it, and "
                "trials of that name are taken as they are"
            )

    def check(self, compressed: CompressedModel, found: Trial, path: str | os.PathLike[str] | None) -> None:
        """Raises CalibrationError where a file does not meet the target."""
        size = compressed.ledger.file_bytes
        source = "" if path is None else f": the trials in {os.fspath(path)} were not made like this; give a new path"
        if self._kind != "max_drop":
            if size > self._limit:
                raise CalibrationError(
                    f"{self._kind}={self._target:g} allows {self._limit:,.0f} bytes, and the file at the steps found "
                    f"takes {size:,}{source}"
                )
            return
        if found.knobs in self._own and size == found.nbytes:
            return  # this very file was evaluated just now
        score, before = self._score(compressed), self._before
        assert score is not None and before is not None
        if not before - score <= self._target:
            raise CalibrationError(
                f"max_drop={self._target:g}: the file at the steps found scores {score:g}, and the model "
                f"{before:g}{source}"
            )

    def obstacles(self, log: Log) -> str | None:
        """What stands in the way of the target, as far as the trials tell."""
        if self._kind == "max_drop":
            return self._obstacles_to_score(log)
        if not log.trials:
            return None
        smallest = min(log.trials.values(), key=lambda trial: trial.nbytes)
        compressed = self._file(smallest.knobs)
        sizes = {name: parts.file_bytes for name, parts in compressed.ledger.layers.items()}
        rounded = {info.name for info in self._job.plan.infos.values()}  # norms, if they stand among the untouched
        kept = sorted(untouched(compressed) & sizes.keys() - rounded, key=lambda name: (-sizes[name], name))
        text = (
            f"the target cannot be met: {self._kind}={self._target:g} allows {self._limit:,.0f} bytes, and the "
            f"smallest file that was tried, with a step of {smallest.knobs.weight_step:.3g}, takes {smallest.nbytes:,}"
        )
        if sum(sizes[name] for name in kept) > smallest.nbytes / 10:
            left, network = self._job.plan.left, self._job.plan.network
            reason = left.get(kept[0]) or left.get(network.layer_of(kept[0])) or "nothing quantizes it"
            return (
                f"{text}; {sum(sizes[name] for name in kept):,} of these are tensors in full precision: {few(kept)} "
                f"({kept[0]!r}: {reason})"
            )
        largest = sorted(sizes, key=lambda name: -sizes[name])
        return f"{text}; the largest parts are {few([f'{name} ({sizes[name]:,})' for name in largest])}"

    def _obstacles_to_score(self, log: Log) -> str | None:
        scored = [t for t in log.trials.values() if t.score is not None and not math.isnan(t.score)]
        text = f"the target cannot be met: the model scores {self._before:g}, max_drop={self._target:g}, and "
        if not scored:
            return f"{text}none of {len(log.trials)} files scores a number"
        best = max(scored, key=lambda trial: (trial.score or 0.0, -trial.nbytes))
        fixed = [r.name for r in self._job.plan.recipes if r.quantizes() and r.at(best.knobs) is None]
        why = f"; whatever the step, something is lost by the recipes {few(fixed)}" if fixed else ""
        return (
            f"{text}the best of {len(log.trials)} files, with a step of {best.knobs.weight_step:.3g}, scores "
            f"{best.score:g}{why}"
        )


def _close(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-3)


def _fingerprint(
    job: Job,
    target: Mapping[str, float],
    metadata: Mapping[str, Any] | None,
    scored: bool,
    evaluation: str | None,
) -> str:
    """Of everything that a trial depends on."""
    digest = hashlib.blake2b(digest_size=16)
    network = job.plan.network

    def add(*values: object) -> None:
        digest.update(repr(values).encode())

    add(__version__, sorted(target.items()), scored, evaluation)
    add(json.dumps(metadata, sort_keys=True, default=repr))
    add(None if job.calibration is None else job.calibration.fingerprint())
    for recipe, claims in zip(job.plan.recipes, job.plan.claims, strict=True):
        add(recipe.name, recipe.options.model_dump_json(), claims.tensors)
    for name, reference in job.plan.request.references.items():
        origin = (reference.survivors, reference.channels) if isinstance(reference, Origin) else (reference, None)
        add(name, torch.as_tensor(origin[0]).tolist(), origin[1])
    for name, tensor in network.state.items():
        add(name, str(tensor.dtype), tuple(tensor.shape))
        digest.update(array_of(tensor).tobytes())
    return digest.hexdigest()
