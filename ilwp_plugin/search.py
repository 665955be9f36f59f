"""Targets instead of knobs: the steps and the dead zone of the smallest file that holds an accuracy or a size."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ilwp_plugin import strict_json
from ilwp_plugin.errors import CalibrationError, ConfigError, FileError

__all__ = ["Knobs", "Log", "Trial", "largest_step", "smallest_file"]

COARSE, FINE = 1.6, 1.03
"""Factors between two steps: while a bracket is looked for, and when it is narrow enough."""

_MOST_STEPS = 24
"""Brackets are looked for over this many factors of COARSE at most, some 10^5 in all."""


@dataclass(frozen=True)
class Knobs:
    """What is searched: `weight_step` and `dead_zone` of a configuration; residuals follow the weights."""

    weight_step: float
    dead_zone: float


@dataclass(frozen=True)
class Trial:
    """A file that was tried: its size in bytes, and what the model restored from it scores (None: not evaluated)."""

    knobs: Knobs
    nbytes: int
    score: float | None = None


class Log:
    """The trials so far, kept in a file of JSON lines if there is a path, so that a search goes on after a kill.

    Args:
        path: the file; None keeps nothing.
        fingerprint: of everything that a trial depends on.

    Raises:
        ConfigError: the file belongs to another search.
        FileError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str) -> None:
        self._path = None if path is None else Path(path)
        self.trials: dict[Knobs, Trial] = {}
        if self._path is None:
            return
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"cannot read {self._path}: {error}") from error
        if not lines:
            self._append({"search": fingerprint})
            return
        try:
            first, *rest = (strict_json.loads(line) for line in self._whole(lines))
            if first["search"] != fingerprint:
                raise ConfigError(
                    f"{self._path}: the trials of another model, configuration or calibration; give a new path"
                )
            for values in rest:
                trial = Trial(Knobs(**values["knobs"]), values["nbytes"], values["score"])
                self.trials[trial.knobs] = trial
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path}: not a record of trials ({error}); give a new path") from None

    def _whole(self, lines: Sequence[str]) -> Sequence[str]:
        """Without a last line that a kill left unfinished, which is also cut off the file."""
        try:
            strict_json.loads(lines[-1])
        except ValueError:
            assert self._path is not None
            self._path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
            return lines[:-1]
        return lines

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        self.trials[trial.knobs] = trial
        if self._path is not None:
            self._append(asdict(trial))

    def _append(self, values: object) -> None:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise FileError(f"cannot write {self._path}: {error.strerror or error}") from error


def largest_step(holds: Callable[[float], bool], start: float) -> float:
    """The largest step that holds, to 3 %, where smaller steps hold and larger ones do not.

    Args:
        holds: whether a step does.
        start: where to begin, larger than 0.

    Raises:
        CalibrationError: no step does.
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
        raise CalibrationError(f"the target cannot be met: not even a step of {bad:.3g} does")
    while bad is not None and bad / good > FINE:
        middle = (good * bad) ** 0.5
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def smallest_file(
    run: Callable[[Knobs], Trial],
    log: Log,
    start: float,
    dead_zones: Sequence[float],
    holds: Callable[[Trial], bool],
    larger_steps_hold: bool,
) -> Trial:
    """The best trial that holds, over dead zones and steps.

    Args:
        run: compresses and evaluates.
        log: known trials; new ones are added.
        start: step to begin with.
        dead_zones: to try, the likeliest first.
        holds: whether a trial meets the target.
        larger_steps_hold: the target is a size, which larger steps meet; else a score, which smaller ones do. Of a
            size the smallest step is the best, of a score the smallest file.

    Raises:
        CalibrationError: the target cannot be met.
    """

    def trial(step: float, dead_zone: float) -> Trial:
        knobs = Knobs(step, dead_zone)
        if knobs not in log.trials:
            log.add(run(knobs))
        return log.trials[knobs]

    found: list[Trial] = []
    for dead_zone in dead_zones:
        if larger_steps_hold:
            # The same search upside down: the smallest step that holds is the largest inverse that does.
            step = 1 / largest_step(lambda inverse, z=dead_zone: holds(trial(1 / inverse, z)), 1 / start)  # type: ignore[misc]
        else:
            step = largest_step(lambda step, z=dead_zone: holds(trial(step, z)), start)  # type: ignore[misc]
        found.append(trial(step, dead_zone))
        start = step
    if larger_steps_hold and all(t.score is not None for t in found):
        return max(found, key=lambda t: (t.score or 0.0, -t.nbytes))
    return found[0] if larger_steps_hold else min(found, key=lambda t: t.nbytes)
