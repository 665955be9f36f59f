"""k-means of scalars against scikit-learn's, and the centres it begins with."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from ilwp_plugin.method.codebooks import nearest_entries
from ilwp_plugin.method.kmeans import STARTS, around_zero, distinct_start, kmeans


@pytest.mark.parametrize("start", list(STARTS))
@pytest.mark.parametrize("count", [2, 7, 16])
def test_centres_are_those_of_scikit_learn(start: str, count: int) -> None:
    values = torch.from_numpy(np.random.default_rng(count).standard_normal(3000))
    begin = distinct_start(values, count, start, seed=3)
    assert len(begin) == count and bool((begin.diff() > 0).all())
    ours = kmeans(values, begin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = KMeans(count, init=begin[:, None].numpy(), n_init=1, max_iter=1000, tol=0, algorithm="lloyd")
        theirs.fit(values[:, None].numpy())
    np.testing.assert_allclose(ours.numpy(), theirs.cluster_centers_[:, 0], rtol=1e-9, atol=1e-9)
    assert np.array_equal(nearest_entries(values, ours[:, None]).numpy(), theirs.labels_)


def test_some_centres_stay() -> None:
    """Against a slow textbook version, one centre of which loses its values."""
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)).double()
    centres = torch.tensor([0.0, 50.0, -1.0, 1.0], dtype=torch.float64)
    fixed = torch.tensor([True, False, False, True])
    slow = centres.clone()
    for _ in range(100):
        nearest = (values[:, None] - slow).abs().argmin(dim=1)
        for i in range(4):
            if not fixed[i] and (nearest == i).any():
                slow[i] = values[nearest == i].mean()
    found = kmeans(values, centres, fixed)
    torch.testing.assert_close(found, slow)
    assert found[0] == 0 and found[3] == 1 and found[1] == 50


def test_starts() -> None:
    values = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.1, 4.0])
    assert distinct_start(values, 5, "linear").tolist() == pytest.approx([0, 0.1, 4])
    many = torch.cat([torch.zeros(90) + torch.arange(90) / 1000, torch.tensor([10.0])])
    assert distinct_start(many, 3, "linear").tolist() == pytest.approx([0, 5, 10])
    assert float(distinct_start(many, 3, "density").max()) < 0.1
    drawn = distinct_start(many, 3, "random", seed=1)
    assert torch.equal(drawn, distinct_start(many, 3, "random", seed=1)) and set(drawn.tolist()) <= set(
        many.double().tolist()
    )
    assert around_zero(torch.tensor([0.3, -0.7]), 6).tolist() == [0, 0.5, -0.5, 0.25, -0.25, 0.125]
    assert around_zero(torch.zeros(3), 3).tolist() == [0, 0, 0]
