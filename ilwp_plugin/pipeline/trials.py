"""Files tried until one meets a target: the plan is made once, and each trial quantizes only."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ilwp_plugin.errors import ConfigError, IlwpWarning
from ilwp_plugin.models.borrowing import copied
from ilwp_plugin.models.tensors import array_of
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.pipeline.plan import Plan, Progress
from ilwp_plugin.pipeline.target import Knobs, Log, Trial, best_within_size, smallest_within_drop
from ilwp_plugin.recipes.base import Recipe
from ilwp_plugin.recipes.grid import CALIBRATED_DEAD_ZONE

__all__ = ["Evaluate", "Job", "meet_target"]

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
    resume: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Knobs:
    """The steps that meet a target; see `compress`.

    Args:
        job: what is tried.
        targets: one of `max_drop`, `target_bytes` and `target_bits_per_weight` is set.
        evaluate: what a model scores, more is better.
        resume: a file that keeps the trials.
        metadata: is part of each file.
        progress: is told the trials.

    Raises:
        ConfigError: more than one target, or one that the arguments do not allow.
        CalibrationError: the target cannot be met.
    """
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(f"one target at a time, got {sorted(given)}")
    (kind, target), *_ = given.items()
    if target < 0 or not math.isfinite(target):
        raise ConfigError(f"{kind}: expected a finite number >= 0, got {target!r}")
    module = job.plan.network.module
    if kind == "max_drop" and (evaluate is None or module is None):
        raise ConfigError("max_drop: needs a module and `evaluate`, to see what the restored model scores")
    if not any(recipe.at(Knobs(1.0, 0.5)) is not None for recipe in job.plan.recipes):
        raise ConfigError(f"{kind}: no recipe of the configuration has steps that could be searched")
    parameters = job.plan.network.state.values() if module is None else module.parameters()
    weights = [tensor for tensor in parameters if tensor.is_floating_point()]
    start = max(float(torch.cat([w.detach().flatten().float().cpu() for w in weights]).std()), 1e-6)

    def score(compressed: CompressedModel | None) -> float | None:
        if evaluate is None or module is None:
            return None
        restored = copied(module).eval()
        if compressed is not None:
            compressed.apply_to(restored)
        return float(evaluate(restored))

    tried = 0

    def run(knobs: Knobs) -> Trial:
        nonlocal tried
        tried += 1
        if progress is not None:
            progress(f"trial with a step of {knobs.weight_step:.3g}", tried, max(tried, EXPECTED_TRIALS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IlwpWarning)  # said once, by the last compression
            compressed = job.run(job.at(knobs), metadata)
        return Trial(knobs, compressed.ledger.file_bytes, score(compressed))

    log = Log(resume, _fingerprint(job, given))
    zones = (CALIBRATED_DEAD_ZONE, NARROW_DEAD_ZONE) if job.calibration is not None else (0.5,)
    if kind == "max_drop":
        before = score(None)
        assert before is not None
        return smallest_within_drop(run, log, start, zones, before, target).knobs
    numel = sum(weight.numel() for weight in weights)
    limit = target if kind == "target_bytes" else target * numel / 8
    return best_within_size(run, log, start, zones if evaluate is not None else zones[:1], limit).knobs


def _fingerprint(job: Job, target: Mapping[str, float]) -> str:
    """Of everything that a trial depends on, but `evaluate`."""
    digest = hashlib.blake2b(digest_size=16)
    for recipe in job.plan.recipes:
        digest.update(f"{recipe.name}{recipe.options.model_dump_json()}".encode())
    digest.update(repr(sorted(target.items())).encode())
    digest.update(("" if job.calibration is None else job.calibration.fingerprint()).encode())
    for name, tensor in job.plan.network.state.items():
        digest.update(name.encode())
        digest.update(array_of(tensor).tobytes())
    return digest.hexdigest()
