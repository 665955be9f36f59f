import itertools
import time

import pytest
import torch
from torch import Tensor

from ilwp_plugin.method.alignment import align_kernels, free_gains


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(kernels: Tensor, reference: Tensor) -> float:
    slots = torch.arange(len(kernels)) % len(reference)
    return float((kernels.double() - reference[slots].double()).abs().sum())


def test_finds_a_hidden_permutation_signs_and_gains() -> None:
    reference = random(16, 9)
    reference = reference * free_gains(reference)[:, None]
    order, factor = torch.randperm(16, generator=torch.Generator().manual_seed(1)), random(16, seed=2)
    alignment = align_kernels(reference[order] * factor[:, None], reference)
    torch.testing.assert_close(alignment.apply(reference[order] * factor[:, None]), reference)


@pytest.mark.parametrize("gains", [True, False])
@pytest.mark.parametrize("slots", [3, 5, 8])
def test_is_the_best_of_all_permutations_and_signs(slots: int, gains: bool) -> None:
    kernels, reference = random(5, 4), random(slots, 4, seed=1)
    scaled = kernels * free_gains(kernels)[:, None] if gains else kernels
    signs = list(itertools.product([1.0, -1.0] if gains else [1.0], repeat=5))
    best = min(
        distance(scaled[list(order)] * torch.tensor(sign)[:, None], reference)
        for order in itertools.permutations(range(5))
        for sign in signs
    )
    alignment = align_kernels(kernels, reference, gains=gains)
    assert distance(alignment.apply(kernels), reference) == pytest.approx(best, rel=1e-5)
    assert sorted(alignment.order.tolist()) == list(range(5))


def test_order_can_be_held() -> None:
    kernels, reference = random(6, 9), random(6, 9, seed=1)
    alignment = align_kernels(kernels, reference, permute=False)
    assert alignment.order.tolist() == list(range(6))
    plain = kernels * free_gains(kernels)[:, None]
    assert distance(alignment.apply(kernels), reference) <= distance(plain, reference)


def test_anchor_gets_gains_only() -> None:
    alignment = align_kernels(random(6, 9), None)
    assert alignment.order.tolist() == list(range(6)) and (alignment.gain > 0).all()
    torch.testing.assert_close(alignment.apply(random(6, 9)).norm(dim=1), torch.ones(6))


def test_dead_kernels() -> None:
    """What a batch norm of variance 0 amplifies gets unit norm as well; only what is 0, or nearly, keeps its gain."""
    kernels = torch.cat([random(2, 9), 1e-9 * random(1, 9), torch.zeros(1, 9), 1e-20 * random(1, 9)])
    gains = free_gains(kernels)
    torch.testing.assert_close((kernels[:3] * gains[:3, None]).norm(dim=1), torch.ones(3))
    assert gains[3:].tolist() == [1, 1]
    assert free_gains(torch.zeros(2, 9)).tolist() == [1, 1]


def test_a_layer_of_1024_channels_takes_under_two_seconds() -> None:
    kernels, reference = random(1024, 9), random(1024, 9, seed=1)
    start = time.perf_counter()
    align_kernels(kernels, reference)
    assert time.perf_counter() - start < 2
