"""The search for targets, on functions instead of models."""

from pathlib import Path

import numpy as np
import pytest

from ilwp_plugin.errors import CalibrationError, ConfigError
from ilwp_plugin.pipeline.target import (
    FINE,
    Knobs,
    Log,
    Trial,
    best_within_size,
    fitted_step,
    largest_step,
    smallest_within_drop,
)


@pytest.mark.parametrize("start", [1e-3, 0.5, 100.0])
def test_largest_step(start: float) -> None:
    found = largest_step(lambda step: step <= 0.337, start)
    assert 0.337 / 1.03 <= found <= 0.337


def test_no_step_holds() -> None:
    with pytest.raises(CalibrationError, match="cannot be met"):
        largest_step(lambda step: False, 1.0)


def run(knobs: Knobs) -> Trial:
    """Larger steps and dead zones: smaller and worse; the zone of .6 is the best bargain."""
    best = 1 - 20 * (knobs.dead_zone - 0.6) ** 2
    return Trial(knobs, int(1000 / knobs.weight_step), -knobs.weight_step / best)


def test_smallest_file_within_a_drop() -> None:
    found = smallest_within_drop(run, Log(None, "x"), 1.0, (0.5, 0.6, 0.7), 0.0, 3.0)
    assert found.knobs.dead_zone == 0.6 and 2.8 < found.knobs.weight_step <= 3


@pytest.mark.parametrize("power", [2.0, 3.0])
def test_one_lucky_or_unlucky_trial_decides_nothing(power: float) -> None:
    """Drops of 0.3 points with a noise of 0.1: what is found holds as measured, and is near what holds on average."""
    found = []
    for seed in range(40):
        generator, calls = np.random.default_rng(seed), dict[float, float]()

        def drop(step: float, calls: dict[float, float] = calls, noise: np.random.Generator = generator) -> float:
            calls[step] = min(0.3 * (step / 0.05) ** power, 80.0) + float(noise.normal(scale=0.1))
            return calls[step]

        found.append(fitted_step(drop, 0.3, 0.1))
        assert calls[found[-1]] <= 0.3 and len(calls) <= 16
    assert 0.04 < np.median(found) < 0.055
    assert np.quantile(found, 0.1) > 0.033 and max(found) < 0.075


def test_nothing_is_allowed() -> None:
    assert 0.9 / FINE < fitted_step(lambda step: max(0.0, step - 1), 0.0, 10.0) <= 1.0
    with pytest.raises(CalibrationError, match="cannot be met"):
        fitted_step(lambda step: 1.0, 0.5, 1.0)


def test_best_file_within_a_size() -> None:
    found = best_within_size(run, Log(None, "x"), 1.0, (0.5, 0.6, 0.7), 200)
    assert found.nbytes <= 200 and 5 <= found.knobs.weight_step < 5.2 and found.knobs.dead_zone == 0.6


def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    path, calls = tmp_path / "trials.jsonl", []

    def counted(knobs: Knobs) -> Trial:
        calls.append(knobs)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return run(knobs)

    arguments = (1.0, (0.5, 0.6), 0.0, 3.0)
    with pytest.raises(KeyboardInterrupt):
        smallest_within_drop(counted, Log(path, "x"), *arguments)
    path.write_text(path.read_text() + '{"knobs": {"weight_st')  # a line that was being written
    found = smallest_within_drop(counted, Log(path, "x"), *arguments)
    assert found == smallest_within_drop(run, Log(None, "x"), *arguments)
    assert len(set(calls)) == len(calls) - 1, "only the interrupted trial is run again"
    with pytest.raises(ConfigError, match="another model"):
        Log(path, "y")
    path.write_text("nonsense\nmore\n")
    with pytest.raises(ConfigError, match="not a record of trials"):
        Log(path, "x")
