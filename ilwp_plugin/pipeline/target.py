"""Targets instead of knobs: the steps and the dead zone of the smallest file that holds an accuracy or a size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import nnls

from ilwp_plugin.errors import CalibrationError, StepError
from ilwp_plugin.pipeline.trial_log import Log, Trial
from ilwp_plugin.recipes.base import Knobs

__all__ = [
    "Knobs",
    "Log",
    "NotMet",
    "Trial",
    "best_within_size",
    "fitted_step",
    "largest_step",
    "smallest_within_drop",
]

COARSE, FINE = 1.6, 1.03
"""Factors between two steps: while a bracket is looked for, and when it is narrow enough."""

_MOST_STEPS = 24
"""Brackets are looked for over this many factors of COARSE at most, some 10^5 in all."""

_MOST_FITS = 6
"""Trials that refine a fit, at most."""

_SPREAD = (1.1, 1 / 1.1, 1.25, 1 / 1.25, 1.05, 1.15)
"""Where the fit is made surer, as factors of the step that it finds."""

_NEAR = 4.0
"""Trials that drop more than this many times what is allowed do not count in a fit."""


class NotMet(CalibrationError):
    """No step meets the target."""


def largest_step(holds: Callable[[float], bool], start: float) -> float:
    """The largest step that holds, to 3 %, where smaller steps hold and larger ones do not.

    Args:
        holds: whether a step does.
        start: where to begin, larger than 0.

    Raises:
        NotMet: no step does.
    """
    good, bad = None, None
    step = start
    for _ in range(_MOST_STEPS):
        if holds(step):
            good, step = step, step * COARSE
        else:
            bad, step = step, step / COARSE
        if good is not None and bad is not None:
            break
    if good is None:
        raise NotMet(f"the target cannot be met: not even a step of {bad:.3g} does")
    while bad is not None and bad / good > FINE:
        middle = (good * bad) ** 0.5
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def fitted_step(drop: Callable[[float], float], allowed: float, start: float) -> float:
    """The largest step whose drop is within what is allowed, where the drop is measured with noise.

    A test set of 10,000 images tells 0.2 points from 0.3 hardly better than a coin, so no single trial may decide. The
    drop is fitted to all trials, as `a step^2 + b step^4` with a and b >= 0 (errors add up like noise, at first
    with the square of the step); trials are made where the fit meets what is allowed until it settles, and some around
    it. The step that is returned was tried itself, holds as measured, and is no larger than the fit has it.

    Args:
        drop: measured, for a step.
        allowed: the most that it may be, >= 0.
        start: where to begin, larger than 0.

    Raises:
        NotMet: no step holds.
    """
    tried: dict[float, float] = {}

    def holds(step: float) -> bool:
        if step not in tried:
            tried[step] = drop(step)
        return tried[step] <= allowed

    if allowed == 0:  # nothing to fit: every positive drop is too much
        return largest_step(holds, start)
    step, verdicts = start, set[bool]()
    for _ in range(_MOST_STEPS):
        verdicts.add(holds(step))
        if len(verdicts) == 2:
            break
        step = step * COARSE if tried[step] <= allowed else step / COARSE
    if True not in verdicts:
        raise NotMet(f"the target cannot be met: not even a step of {min(tried):.3g} does")
    limit = _fit(tried, allowed)
    for _ in range(_MOST_FITS):
        if min(abs(math.log(limit / step)) for step in tried) < math.log(FINE):
            break
        holds(limit)
        limit = _fit(tried, allowed)
    for factor in _SPREAD:  # a single trial may be lucky or unlucky by the whole target
        holds(limit * factor)
        limit = _fit(tried, allowed)
    for i in range(_MOST_FITS):
        near = [s for s, value in tried.items() if value <= allowed and limit / FINE ** (i + 2) < s < limit * FINE]
        if near:
            return max(near)
        holds(limit / FINE**i)
    return max(s for s, value in tried.items() if value <= allowed)


def _fit(tried: dict[float, float], allowed: float) -> float:
    """The step where the fitted drop is what is allowed, not far outside what was tried."""
    steps = sorted(tried)
    # What is far beyond the target says little about it: there the drop saturates.
    near = [s for s in steps if tried[s] <= _NEAR * allowed] or steps[:1]
    far = [s for s in steps if s > near[-1]]
    used = np.array(near + far[:1])
    drops = np.minimum([tried[s] for s in used], max(_NEAR * allowed, 1e-12))
    scale = used[-1]
    (a, b), _ = nnls(np.stack([(used / scale) ** 2, (used / scale) ** 4], axis=1), drops)
    if a + b <= 0:
        return float(scale)
    square = 2 * allowed / (a + math.sqrt(a * a + 4 * b * allowed))
    return float(np.clip(math.sqrt(square) * scale, steps[0] / COARSE, steps[-1]))


class _Tries:
    """Trials by step and dead zone, each made once."""

    def __init__(self, run: Callable[[Knobs], Trial], log: Log) -> None:
        self._run, self._log = run, log

    def __call__(self, step: float, dead_zone: float) -> Trial:
        knobs = Knobs(step, dead_zone)
        if knobs not in self._log.trials:
            self._log.add(self._run(knobs))
        return self._log.trials[knobs]


def smallest_within_drop(
    run: Callable[[Knobs], Trial], log: Log, start: float, dead_zones: Sequence[float], before: float, max_drop: float
) -> Trial:
    """The smallest file whose score is no more than `max_drop` below `before`, see `fitted_step`.

    Args:
        run: compresses and evaluates.
        log: known trials; new ones are added.
        start: step to begin with.
        dead_zones: to try, the likeliest first.
        before: score of the model itself.
        max_drop: >= 0.

    Raises:
        NotMet: the target cannot be met.
    """
    trial, found = _Tries(run, log), list[Trial]()
    for dead_zone in dead_zones:

        def drop(step: float, zone: float = dead_zone) -> float:
            try:
                score = trial(step, zone).score
            except StepError:  # no file holds codes of so fine a step
                return math.inf
            assert score is not None
            return before - score if math.isfinite(score) else math.inf

        if found:  # another dead zone is worth a search where it drops less in a file of about the same size
            best = min(found, key=lambda t: t.nbytes)
            start = best.knobs.weight_step
            start *= trial(start, dead_zone).nbytes / best.nbytes
            assert best.score is not None
            if drop(start) >= before - best.score:
                continue
        found.append(trial(fitted_step(drop, max_drop, start), dead_zone))
    return min(found, key=lambda t: t.nbytes)


def best_within_size(
    run: Callable[[Knobs], Trial], log: Log, start: float, dead_zones: Sequence[float], limit: float
) -> Trial:
    """The file of at most `limit` bytes that scores best; of one dead zone that with the smallest step.

    Args:
        run: compresses, and evaluates if there is something to evaluate with.
        log, start, dead_zones: as above.
        limit: in bytes.

    Raises:
        NotMet: the target cannot be met.
    """
    trial, found = _Tries(run, log), list[Trial]()
    for dead_zone in dead_zones:

        def holds(inverse: float, zone: float = dead_zone) -> bool:
            try:
                return trial(1 / inverse, zone).nbytes <= limit
            except StepError:  # no file holds codes of so fine a step
                return False

        # The search upside down: the smallest step that holds is the largest inverse that does.
        start = 1 / largest_step(holds, 1 / start)
        found.append(trial(start, dead_zone))
    if all(t.score is not None for t in found):
        return max(found, key=lambda t: (t.score or 0.0, -t.nbytes))
    return found[0]
