"""Against a literal double loop over equation 2."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ilwp_plugin.method.loss import inter_layer_loss


def weight(kernels: int, seed: int, size: int = 3) -> Tensor:
    return torch.randn(kernels, 1, size, size, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def literal(chain: list[Tensor]) -> Tensor:
    total, predicted = torch.zeros(()), 0
    for i in range(1, len(chain)):
        for j in range(len(chain[i])):
            total = total + (chain[i][j] - chain[i - 1][j % len(chain[i - 1])]).abs().sum()
            predicted += chain[i][j].numel()
    return total / predicted


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5))
def test_equation_2(counts: list[int]) -> None:
    chain = [weight(count, seed) for seed, count in enumerate(counts)]
    loss, expected = inter_layer_loss([chain]), literal(chain)
    torch.testing.assert_close(loss, expected)
    ours, theirs = torch.autograd.grad(loss, chain), torch.autograd.grad(expected, chain)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_gradient_flows_into_both_layers() -> None:
    chain = [weight(4, 0), weight(4, 1)]
    a, b = torch.autograd.grad(inter_layer_loss([chain]), chain)
    assert torch.equal(a, -b) and (b != 0).all()


def test_chains_share_one_mean() -> None:
    small, large = [weight(4, 0), weight(4, 1)], [weight(2, 2, 5), weight(6, 3, 5)]
    expected = (literal(small) * 36 + literal(large) * 150) / 186
    torch.testing.assert_close(inter_layer_loss([small, large]), expected)


def test_dense_slices_count_as_kernels() -> None:
    a, b = torch.randn(2, 3, 3, 3), torch.randn(5, 2, 3, 3)
    torch.testing.assert_close(inter_layer_loss([[a, b]]), literal([a.reshape(6, 3, 3), b.reshape(10, 3, 3)]))


def test_index_maps_replace_the_collocated_rule() -> None:
    a, b = weight(3, 0), weight(2, 1)
    expected = ((b[0] - a[2]).abs().sum()) / 9
    torch.testing.assert_close(inter_layer_loss([[a, b]], [[None, torch.tensor([2, -1])]]), expected)
    torch.testing.assert_close(inter_layer_loss([[a, b]], [[None, torch.tensor([0, 1])]]), inter_layer_loss([[a, b]]))


def test_nothing_is_predicted() -> None:
    a, b = weight(3, 0), weight(2, 1)
    loss = inter_layer_loss([[a, b]], [[None, torch.tensor([-1, -1])]])
    assert float(loss.detach()) == 0 and not torch.autograd.grad(loss, b)[0].any()


def test_index_maps_follow_the_weights_to_their_device() -> None:
    a, b = torch.ones(3, 1, 3, 3, device="meta"), torch.ones(2, 1, 3, 3, device="meta")
    assert inter_layer_loss([[a, b]], [[None, torch.tensor([2, -1])]]).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_result_is_float32(dtype: torch.dtype) -> None:
    chain = [weight(4, 0).detach().to(dtype), weight(8, 1).detach().to(dtype)]
    loss = inter_layer_loss([chain])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, literal([layer.float() for layer in chain]))
