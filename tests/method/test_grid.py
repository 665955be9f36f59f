"""Codes times one step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ilwp_plugin.errors import TensorError
from ilwp_plugin.method.grid import grid_codes, restore_codes
from ilwp_plugin.method.rounding import dead_zone_rounding, rate_rounding


@given(st.floats(0.01, 2), st.sampled_from([0.5, 0.6, 1.0]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_nearest_level_but_for_the_dead_zone(step: float, dead_zone: float, seed: int) -> None:
    weight = torch.randn(20, 7, generator=torch.Generator().manual_seed(seed))
    restored = restore_codes(grid_codes(weight, step, dead_zone), step)
    error = (restored - weight).abs()
    dead = restored == 0
    assert float(error[~dead].max() if bool((~dead).any()) else 0) <= step / 2 * 1.0001
    assert float(error[dead].max() if bool(dead.any()) else 0) <= step * dead_zone * 1.0001


def test_a_step_too_fine_is_refused() -> None:
    with pytest.raises(
        TensorError,
        match="a step of 1e-06 is too fine for values of up to 1: .*; the smallest step that does is 3.06e-05",
    ):
        grid_codes(torch.ones(3), 1e-6)


def test_rate_rounding_trades_error_for_bits() -> None:
    levels = torch.randn(20000, generator=torch.Generator().manual_seed(0)) * 2
    plain = dead_zone_rounding(0.5, 127)(levels)
    free, dear = (rate_rounding(levels, weight, 127)(levels) for weight in (0.0, 0.2))
    assert torch.equal(free, plain)
    assert float((dear == 0).float().mean()) > float((plain == 0).float().mean())
    assert float((dear - levels).square().mean()) > float((plain - levels).square().mean())
    assert bool((dear.abs() <= plain.abs()).all())
