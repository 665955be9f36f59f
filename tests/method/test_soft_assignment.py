"""Soft assignment against torch's own differentiation of its definition; centres against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from ilwp_plugin.method import soft_assignment as module
from ilwp_plugin.method.soft_assignment import hard_codebook, histogram_entropy, soft_assignment


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("cells", [1 << 22, 40], ids=["at once", "in pieces"])
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, width: int, cells: int) -> None:
    monkeypatch.setattr(module, "_CELLS", cells)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(50, width, dtype=torch.float64, generator=generator, requires_grad=True)
    centres = torch.randn(6, width, dtype=torch.float64, generator=generator, requires_grad=True)
    values, histogram = soft_assignment(weights, centres, 2.5)
    shares = torch.softmax(-2.5 * (weights[:, None] - centres).square().sum(dim=2), dim=1)
    torch.testing.assert_close(values, shares @ centres)
    torch.testing.assert_close(histogram, shares.sum(dim=0))
    mine = values.pow(3).sum() + 7 * histogram_entropy(histogram)
    plain = (shares @ centres).pow(3).sum() + 7 * torch.special.entr(shares.mean(dim=0)).sum() / np.log(2)
    torch.testing.assert_close(mine, plain)
    for own, other in zip(
        torch.autograd.grad(mine, (weights, centres)), torch.autograd.grad(plain, (weights, centres)), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_it_hardens() -> None:
    weights = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    centres = torch.tensor([[-1.0], [0.0], [1.0]])
    values, histogram = soft_assignment(weights, centres, 1e5)
    nearest = (weights - centres.T).abs().argmin(dim=1)
    torch.testing.assert_close(values, centres[nearest], atol=1e-3, rtol=0)
    torch.testing.assert_close(histogram, torch.bincount(nearest, minlength=3).float(), atol=1.0, rtol=0)


def test_centres_without_a_target_are_those_of_k_means() -> None:
    """Clusters that are apart: whoever iterates finds their means."""
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [4.0, 4.0], [-4.0, 4.0], [4.0, -5.0]])
    vectors = (
        (middles[torch.randint(0, 4, (2000,), generator=generator)]) + torch.randn(2000, 2, generator=generator) / 9
    )
    centres = hard_codebook(vectors, 16, 99.0)
    found = KMeans(len(centres), init=centres.numpy(), n_init=1).fit(vectors.numpy())
    mine = torch.cdist(vectors, centres).min(dim=1).values.square().sum()
    assert not centres[0].any() and float(mine) < 1.2 * found.inertia_


@pytest.mark.parametrize("bits", [1.6, 2.5])
@pytest.mark.parametrize("width", [1, 2])
def test_entropy_target(bits: float, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(6000, width, generator=generator) * 0.1
    centres = hard_codebook(vectors, 64, bits * width)
    counts = torch.bincount(torch.cdist(vectors, centres).argmin(dim=1))
    assert float(histogram_entropy(counts.double())) / width <= bits + 0.05
    assert len(centres) > 1
