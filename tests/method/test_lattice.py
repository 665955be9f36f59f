"""Dithered quantization against all points of the lattice, and what is left against uniform noise."""

import numpy as np
import pytest
import torch

from ilwp_plugin.errors import StepError
from ilwp_plugin.format import DitheredSection, DitheredTensor, Lattice, TensorInfo
from ilwp_plugin.method.lattice import dither_of, lattice_codes, lattice_values

STEP = 0.25


def some(n: int = 3000) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.3


def test_against_all_points() -> None:
    weight = some().reshape(30, 100)
    moved = dither_of(5, 1, weight)
    codes = lattice_codes(weight, STEP, moved)
    points = torch.arange(-12, 13)
    values = torch.where(points == 0, 0.0, (points - moved[..., None].double()) * STEP)
    least = (values - weight[..., None]).abs().min(dim=-1).values
    restored = lattice_values(codes, STEP, moved)
    torch.testing.assert_close((restored.double() - weight).abs(), least.double(), rtol=1e-5, atol=1e-6)


def test_what_is_left_is_noise() -> None:
    """It is uniform, and does not depend on the values: the point of dither. Of what becomes 0 nothing is said."""
    weight = some(60_000)
    moved = dither_of(1, 0, weight)
    codes = lattice_codes(weight, STEP, moved)
    far = weight.abs() > 1.5 * STEP
    error = ((lattice_values(codes, STEP, moved) - weight) / STEP)[far].double().numpy()
    assert abs(error).max() <= 0.5 + 1e-5
    counts = np.histogram(error, 10, (-0.5, 0.5))[0]
    assert np.abs(counts - len(error) / 10).max() < 5 * (len(error) / 10) ** 0.5
    assert abs(np.corrcoef(error, weight[far].numpy())[0, 1]) < 5 / len(error) ** 0.5


def test_as_a_file_restores_it() -> None:
    weight = some().reshape(10, 3, 10, 10)
    moved = dither_of(2**63, 7, weight)
    codes = lattice_codes(weight, STEP, moved)
    table = torch.arange(int(codes.min()), int(codes.max()) + 1).float() * 1.01 + 0.3
    info = TensorInfo("w", "float32", tuple(weight.shape), "coded")
    for levels in (None, table):
        lattice = Lattice(2**63, int(codes.min()), None if levels is None else levels.numpy())
        section = DitheredSection(lattice, [DitheredTensor(info, STEP, 7, codes.numpy())], "lzma")
        restored = lattice_values(codes, STEP, moved, levels, int(codes.min()))
        assert np.array_equal(section.restore("w").view(np.uint32), restored.numpy().view(np.uint32))


def test_bits_count() -> None:
    weight = some()
    moved = dither_of(0, 0, weight)

    def entropy(codes: torch.Tensor) -> float:
        shares = torch.bincount(codes - codes.min()).double() / len(codes)
        return float(-(shares[shares > 0] * shares[shares > 0].log2()).sum())

    plain, cheap = lattice_codes(weight, STEP, moved), lattice_codes(weight, STEP, moved, 0.3)
    assert entropy(cheap) < 0.95 * entropy(plain)
    errors = [float((lattice_values(codes, STEP, moved) - weight).square().mean()) for codes in (plain, cheap)]
    costs = [error / STEP**2 + 0.3 * entropy(codes) for error, codes in zip(errors, (plain, cheap), strict=True)]
    assert errors[0] < errors[1] and costs[1] < costs[0]


def test_zeros_stay() -> None:
    weight = some()
    weight[::2] = 0
    for rate in (0.0, 0.1):
        codes = lattice_codes(weight, STEP, dither_of(0, 0, weight), rate)
        assert not codes[::2].any() and codes[1::2].any()


def test_steps_that_are_too_fine() -> None:
    weight = torch.tensor([1.0, 1e-3])
    with pytest.raises(StepError, match="too fine"):
        lattice_codes(weight, 1e-5, dither_of(0, 0, weight))
