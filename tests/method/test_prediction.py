"""Against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ilwp_plugin.errors import RegistryError, TensorError
from ilwp_plugin.method.prediction import (
    PREDICTORS,
    collocated_references,
    gather_references,
    nearest_kernels,
    previous_layer_references,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(kernels: Tensor, pool: Tensor) -> Tensor:
    return (kernels[:, None].double() - pool[None].double()).abs().sum(dim=2).argmin(dim=1)


@pytest.mark.parametrize("taps", [1, 4, 9, 12, 13, 25, 49])
@pytest.mark.parametrize("pool", [1, 2, 300])
def test_search_is_exact(taps: int, pool: int) -> None:
    kernels, candidates = random(200, taps), random(pool, taps, seed=1)
    assert torch.equal(nearest_kernels(kernels, candidates), brute_force(kernels, candidates))


@pytest.mark.parametrize("taps", [9, 25])
def test_of_equal_kernels_the_first_counts(taps: int) -> None:
    pool = random(5, taps).repeat(3, 1)
    assert torch.equal(nearest_kernels(pool, pool), torch.arange(5).repeat(3))


def test_search_finds_the_distance_also_on_a_grid() -> None:
    kernels, pool = random(300, 9).round(), random(400, 9, seed=1).round()
    best = nearest_kernels(kernels, pool)
    found = (kernels - pool[best]).abs().sum(dim=1)
    assert torch.equal(found, (kernels[:, None] - pool[None]).abs().sum(dim=2).min(dim=1).values)


def test_search_reports_every_kernel() -> None:
    told: list[int] = []
    nearest_kernels(random(20000, 9), random(10, 9), told.append)
    assert sum(told) == 20000 and len(told) > 1


def test_modes_of_the_paper() -> None:
    earlier = [random(6, 9), random(4, 9, seed=1)]
    kernels = random(10, 9, seed=2)
    assert PREDICTORS["none"].references(kernels, earlier).tolist() == [-1] * 10
    assert PREDICTORS["collocated"].references(kernels, earlier).tolist() == [6, 7, 8, 9, 6, 7, 8, 9, 6, 7]
    assert torch.equal(PREDICTORS["local"].references(kernels, earlier), 6 + brute_force(kernels, earlier[1]))
    assert torch.equal(PREDICTORS["full"].references(kernels, earlier), brute_force(kernels, torch.cat(earlier)))
    with pytest.raises(RegistryError, match="did you mean 'local'"):
        PREDICTORS["locale"]


@given(st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_collocated_rule(kernels: int, earlier: list[int]) -> None:
    references = collocated_references(kernels, earlier).tolist()
    assert references == [sum(earlier[:-1]) + j % earlier[-1] for j in range(kernels)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_gather(sizes: list[int], data: st.DataObject) -> None:
    pool = torch.cat([random(size, 4, seed=i) for i, size in enumerate(sizes)])
    references = torch.tensor(data.draw(st.lists(st.integers(-1, sum(sizes) - 1), min_size=1, max_size=9)))
    with_zero = np.concatenate([np.zeros((1, 4), np.float32), pool.numpy()])
    assert np.array_equal(gather_references(pool, references).numpy(), with_zero[references.numpy() + 1])


def test_nothing_to_gather_from() -> None:
    assert gather_references(torch.empty(0, 9), torch.tensor([-1, -1])).tolist() == [[0.0] * 9] * 2


def test_map_into_the_layer_before() -> None:
    assert previous_layer_references(torch.tensor([2, -1, 0]), 3, [5, 3], "x").tolist() == [7, -1, 5]


@pytest.mark.parametrize(
    "indices", [torch.tensor([0, 3]), torch.tensor([-2, 0]), torch.tensor([0]), torch.tensor([0.0, 1.0]), "ab"]
)
def test_bad_maps_are_refused(indices: Tensor) -> None:
    with pytest.raises(TensorError, match="references of layer 'conv'"):
        previous_layer_references(indices, 2, [5, 3], "conv")
