"""Steps by layer: the cheapest for a number of bits, by the model that they are made for."""

import itertools
import math

import pytest

from ilwp_plugin.method.allocation import LARGEST_OF_SIZE, SPREAD, allocate_steps

WEIGHTS = {"a": 100, "b": 300, "c": 50}
ERRORS = {"a": 0.02, "b": 0.02, "c": 0.03}
SIZES = {"a": 1.0, "b": 1.0, "c": 1.0}


def test_no_exchange_of_bits_pays() -> None:
    """Cost sum(error (s / step)^2) at equal bits sum(-weights log2 s): no pair of layers gains by an exchange."""

    def cost(steps: dict[str, float]) -> float:
        return sum(ERRORS[name] * (s / 0.1) ** 2 for name, s in steps.items())

    steps = allocate_steps(0.1, ERRORS, WEIGHTS, SIZES)
    assert sum(WEIGHTS[n] * math.log(s / 0.1) for n, s in steps.items()) == pytest.approx(0, abs=1e-9)
    for one, other in itertools.permutations(WEIGHTS, 2):
        moved = dict(steps)
        moved[one] *= math.exp(1 / WEIGHTS[one])
        moved[other] /= math.exp(1 / WEIGHTS[other])
        assert cost(moved) > cost(steps)


def test_steps_stay_near_the_mean() -> None:
    steps = allocate_steps(0.1, {"a": 0.0, "b": 1.0, "c": 1e-9}, WEIGHTS, SIZES)
    assert (
        steps["a"] == 0.1
        and steps["c"] == pytest.approx(0.1 * SPREAD)
        and all(0.1 / SPREAD <= s <= 0.1 * SPREAD + 1e-9 for s in steps.values())
    )
    assert allocate_steps(0.1, {}, {}, {}) == {}


def test_no_step_takes_whole_layers_away() -> None:
    sizes = {"a": 0.0, "b": 0.01, "c": 1.0}
    steps = allocate_steps(0.1, ERRORS, WEIGHTS, sizes)
    free = allocate_steps(0.1, ERRORS, WEIGHTS, SIZES)
    assert steps == {"a": free["a"], "b": pytest.approx(LARGEST_OF_SIZE * 0.01), "c": free["c"]}
