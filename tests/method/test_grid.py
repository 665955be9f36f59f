"""Integer codes times a scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ilwp_plugin import IntegerTensor
from ilwp_plugin.errors import TensorError
from ilwp_plugin.method.grid import kernel_residual, kernel_sum, round_to_grid
from ilwp_plugin.method.rounding import dead_zone_rounding, rate_rounding


@given(st.floats(0.01, 2), st.sampled_from([0.5, 0.6, 1.0]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_nearest_level_but_for_the_dead_zone(step: float, dead_zone: float, seed: int) -> None:
    weight = torch.randn(20, 7, generator=torch.Generator().manual_seed(seed))
    restored = round_to_grid(weight, step, dead_zone).restore()
    error = (restored - weight).abs()
    dead = restored == 0
    assert float(error[~dead].max() if bool((~dead).any()) else 0) <= step / 2 * 1.0001
    assert float(error[dead].max() if bool(dead.any()) else 0) <= step * dead_zone * 1.0001


def test_restores_as_its_formula_says() -> None:
    codes = torch.randint(0, 255, (4, 3, 2, 2), dtype=torch.uint8)
    scale, zero = torch.rand(3), torch.tensor([5, 120, 0])
    value = IntegerTensor(codes, scale, zero, axis=1)
    expected = (codes.float() - zero.float()[None, :, None, None]) * scale[None, :, None, None]
    assert torch.equal(value.restore(), expected)
    assert torch.equal(IntegerTensor.from_centred(value.centred, scale, zero, 1).codes, value.codes)


def test_prediction_of_integers_loses_nothing() -> None:
    reference, codes = torch.randint(-127, 128, (4, 1, 3, 3)), torch.randint(-127, 128, (10, 1, 3, 3))
    residual = kernel_residual(codes, reference)
    assert torch.equal(residual[9], codes[9] - reference[1])
    assert torch.equal(kernel_sum(residual, reference), codes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 2), torch.ones(())), "integer dtype"),
        ((torch.ones(2, 2, dtype=torch.int8), torch.ones(3)), "3 scales for codes of shape"),
        ((torch.ones(2, 2, dtype=torch.int8), torch.tensor(-1.0)), "finite scales"),
        ((torch.ones(2, 2, dtype=torch.int8), torch.tensor(float("nan"))), "finite scales"),
        ((torch.full((2,), 40000), torch.tensor(1.0)), "beyond 32767"),
        ((torch.ones(2, 2, dtype=torch.int8), torch.ones(2), torch.tensor(1)), "1 zero points for 2 scales"),
    ],
)
def test_refused(arguments: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(TensorError, match=message):
        IntegerTensor(*arguments)


def test_a_step_too_fine_is_refused() -> None:
    with pytest.raises(
        TensorError,
        match="a step of 1e-06 is too fine for values of up to 1: .*; the smallest step that does is 3.06e-05",
    ):
        round_to_grid(torch.ones(3), 1e-6)


def test_rate_rounding_trades_error_for_bits() -> None:
    levels = torch.randn(20000, generator=torch.Generator().manual_seed(0)) * 2
    plain = dead_zone_rounding(0.5, 127)(levels)
    free, dear = (rate_rounding(levels, weight, 127)(levels) for weight in (0.0, 0.2))
    assert torch.equal(free, plain)
    assert float((dear == 0).float().mean()) > float((plain == 0).float().mean())
    assert float((dear - levels).square().mean()) > float((plain - levels).square().mean())
    assert bool((dear.abs() <= plain.abs()).all())
