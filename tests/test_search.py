"""The search for targets, on functions instead of models."""

from pathlib import Path

import pytest

from ilwp_plugin.errors import CalibrationError, ConfigError
from ilwp_plugin.search import Knobs, Log, Trial, largest_step, smallest_file


@pytest.mark.parametrize("start", [1e-3, 0.5, 100.0])
def test_largest_step(start: float) -> None:
    found = largest_step(lambda step: step <= 0.337, start)
    assert 0.337 / 1.03 <= found <= 0.337


def test_no_step_holds() -> None:
    with pytest.raises(CalibrationError, match="cannot be met"):
        largest_step(lambda step: False, 1.0)


def run(knobs: Knobs) -> Trial:
    """Larger steps and dead zones: smaller and worse; the zone of .6 is the best bargain."""
    best = 1 - 4 * (knobs.dead_zone - 0.6) ** 2
    return Trial(knobs, int(1000 / knobs.weight_step), -knobs.weight_step / best)


def test_smallest_file_within_a_drop() -> None:
    found = smallest_file(run, Log(None, "x"), 1.0, (0.5, 0.6, 0.7), lambda t: (t.score or 0) >= -3, False)
    assert found.knobs.dead_zone == 0.6 and 2.9 < found.knobs.weight_step <= 3


def test_best_file_within_a_size() -> None:
    found = smallest_file(run, Log(None, "x"), 1.0, (0.5, 0.6, 0.7), lambda t: t.nbytes <= 200, True)
    assert found.nbytes <= 200 and 5 <= found.knobs.weight_step < 5.2 and found.knobs.dead_zone == 0.6


def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    path, calls = tmp_path / "trials.jsonl", []

    def counted(knobs: Knobs) -> Trial:
        calls.append(knobs)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return run(knobs)

    arguments = (1.0, (0.5, 0.6), lambda t: (t.score or 0) >= -3, False)
    with pytest.raises(KeyboardInterrupt):
        smallest_file(counted, Log(path, "x"), *arguments)
    path.write_text(path.read_text() + '{"knobs": {"weight_st')  # a line that was being written
    found = smallest_file(counted, Log(path, "x"), *arguments)
    assert found == smallest_file(run, Log(None, "x"), *arguments)
    assert len(set(calls)) == len(calls) - 1, "only the interrupted trial is run again"
    with pytest.raises(ConfigError, match="another model"):
        Log(path, "y")
    path.write_text("nonsense\nmore\n")
    with pytest.raises(ConfigError, match="not a record of trials"):
        Log(path, "x")
