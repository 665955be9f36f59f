"""Books: entries that learn against a table of parameters, order, nearest entries against distances."""

import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin.method.codebooks import (
    FREE,
    Codebooks,
    Codes,
    TiedBook,
    entropy_of,
    nearest_entries,
    ordered,
    value_numbers,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_members_move_as_an_entry_does_that_is_a_parameter(width: int, optimizer: str) -> None:
    """The summed gradients of the members, over two weights of different layers."""
    a, b = nn.Parameter(random(6, 6)), nn.Parameter(random(3, 6, seed=1))
    indices = [torch.arange(36 // width) % 3, torch.arange(18 // width) % 2]
    tied = TiedBook(torch.zeros(4, width), torch.tensor([True, True, False, True]), indices)
    table = nn.Parameter(tied.means([a, b]))
    start = table.detach().clone()
    make = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0),
    }[optimizer]
    ours, theirs = make([a, b]), make([table])
    x, y = random(5, 6, seed=2), random(5, 3, seed=3)

    def loss(book: Tensor) -> Tensor:
        first, second = (book[i].reshape(shape) for i, shape in zip(indices, ((6, 6), (3, 6)), strict=True))
        return ((x @ first.T).tanh() @ second.T - y).square().mean()

    for _ in range(5):
        for optimize, book in ((ours, tied.values([a, b])), (theirs, table)):
            optimize.zero_grad()
            loss(book).backward()  # type: ignore[no-untyped-call]
        assert table.grad is not None
        table.grad[2] = 0  # an entry that does not learn
        ours.step()
        theirs.step()
    moved = tied.means([a, b])
    torch.testing.assert_close(moved[:2], table[:2].detach())
    assert torch.equal(moved[2:], torch.zeros(2, width)), "one does not learn, the other has no members"
    assert not torch.allclose(moved[:2], start[:2], atol=1e-3)


def test_what_is_free_is_in_no_entry() -> None:
    weight = torch.tensor([1.0, 3.0, 100.0]).requires_grad_()
    tied = TiedBook(torch.zeros(1, 1), torch.tensor([True]), [torch.tensor([0, 0, FREE])])
    book = tied.values([weight])
    assert book.item() == 2
    book.sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and weight.grad.tolist() == [1, 1, 0]


def test_several_passes_share_entries() -> None:
    weight = random(8).requires_grad_()
    tied = TiedBook(torch.zeros(2, 1), torch.ones(2, dtype=torch.bool), [torch.arange(8) % 2])
    book = tied.values([weight])
    for _ in range(2):
        (book[torch.arange(8) % 2] * 2).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [16.0] * 8


@pytest.mark.parametrize("width", [1, 4])
def test_nearest_entries(width: int) -> None:
    values, book = random(400, width), random(9, width, seed=1)
    distances = (values[:, None] - book).square().sum(dim=2)
    assert torch.equal(nearest_entries(values, book), distances.argmin(dim=1))


@pytest.mark.parametrize("by_count", [False, True])
def test_order(by_count: bool) -> None:
    books = (torch.tensor([[5.0], [0.5], [-1.0], [0.5], [9.0]]), torch.tensor([[7.0]]), torch.tensor([[1.0], [0.0]]))
    codes = {
        "a": Codes(0, torch.tensor([0, 1, 2, 3, 3])),
        "b": Codes(2, torch.tensor([1, 1, 0])),
        "c": Codes(0, torch.tensor([0, 2])),
    }
    whole = Codebooks(books, codes)
    found = ordered(whole, by_count)
    assert [book.flatten().tolist() for book in found.books] == (
        [[0.5, -1.0, 5.0], [0.0, 1.0]] if by_count else [[-1.0, 0.5, 5.0], [0.0, 1.0]]
    )
    for key, own in codes.items():
        like = torch.empty(len(own.indices))
        assert torch.equal(found.values(key, like), whole.values(key, like))


def test_statistics() -> None:
    found, counts = value_numbers([torch.tensor([1.0, 0.0, -0.0]), torch.tensor([[2.0, 1.0]])])
    assert found.tolist() == [0, 1, 2] and counts.tolist() == [2, 2, 1]
    assert entropy_of(torch.tensor([1, 1, 2, 0])) == pytest.approx(1.5)
    assert entropy_of(torch.tensor([3])) == 0


def test_damped_members_learn_slower() -> None:
    """By the square root of their number."""
    book = torch.tensor([[1.0], [2.0]])
    indices = torch.tensor([0] * 9 + [1] * 4)
    gradients = []
    for damped in (False, True):
        weight = book[indices, 0].clone().requires_grad_()
        values = TiedBook(book, torch.ones(2, dtype=torch.bool), [indices], damped).values([weight])
        (values[indices, 0] * torch.arange(13)).sum().backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        gradients.append(weight.grad)
    assert gradients[0].tolist() == [36.0] * 9 + [42.0] * 4
    torch.testing.assert_close(gradients[1], torch.tensor([12.0] * 9 + [21.0] * 4))
