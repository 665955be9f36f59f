import math

import pytest
import torch

from ilwp_plugin.format.coding import Histogram
from ilwp_plugin.method.entropy_model import REFIT_STEPS, CodeModel, CodeModels, entropy_bits


def laplace(count: int, scale: float) -> torch.Tensor:
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0)) - 0.5
    return -scale * uniform.sign() * torch.log1p(-2 * uniform.abs())


@pytest.mark.parametrize("scale", [0.2, 0.5, 2.0, 6.0])
def test_model_tells_what_codes_cost(scale: float) -> None:
    """Within two per cent of their entropy, for sparse and dense layers."""
    codes = torch.round(laplace(100_000, scale))
    entropy = Histogram.of(codes.short().numpy()).entropy * codes.numel()
    assert float(CodeModel.fit(codes).bits(codes)) == pytest.approx(entropy, rel=0.02)
    assert entropy_bits(codes + 0.3) == pytest.approx(entropy, rel=1e-9)


def test_bits_of_codes_far_apart() -> None:
    codes = torch.tensor([0.0, 0.0, 1e6, -1e6])
    assert entropy_bits(codes) == pytest.approx(2 * 1 + 2 * 2)


def test_gradient_is_the_slope_to_the_next_code_towards_zero() -> None:
    model = CodeModel(zeros=0.75, ratio=0.25)
    levels = torch.tensor([-2.2, -0.3, 0.0, 0.7, 1.2, 3.0], requires_grad=True)
    bits = model.bits(levels)
    first = -math.log2(0.25 * 0.75 / 2)
    zero = -math.log2(0.75)
    assert float(bits.detach()) == pytest.approx((first + 2) + zero + zero + first + first + (first + 4), rel=1e-6)
    bits.backward()
    jump = first - zero
    torch.testing.assert_close(levels.grad, torch.tensor([-2.0, -jump, 0.0, jump, 2.0, 2.0]))


@pytest.mark.parametrize("codes", [torch.zeros(5), torch.ones(5), torch.tensor([7.0])])
def test_models_of_one_code_are_finite(codes: torch.Tensor) -> None:
    model = CodeModel.fit(codes)
    values = [model.zeros, model.ratio, model.first, model.slope, model.jump, float(model.bits(codes))]
    assert all(map(math.isfinite, values))


def test_models_are_fitted_anew_now_and_then() -> None:
    models, few, many = CodeModels(), torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 2.0, 3.0])
    before = models.bits({"a": few})
    assert models.bits({"a": many}) > CodeModel.fit(many).bits(many), "of the model of other codes"
    other = CodeModels()
    other.load_state(models.state())
    for _ in range(REFIT_STEPS):
        assert models.bits({"a": few}) == before == other.bits({"a": few})
        models.after_step()
        other.after_step()
    assert models.bits({"a": many}) == CodeModel.fit(many).bits(many) == other.bits({"a": many})
