"""Codebooks: values that are indices into tables, as mathematics of tensors.

A value, or a group of `width` consecutive values in row-major order, is an entry of a book. In training entries that
learn are the means of their members: every member gets the sum of the members' gradients, so that all of them move
alike, and their mean moves as an entry does that is trained by that sum (Han et al. 2015, section 3.3). Nothing but the
weights themselves is trained, by whatever optimizer trains the model, in one process or in several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Codebooks", "Codes", "FREE", "TiedBook", "entropy_of", "nearest_entries", "ordered", "value_numbers"]

FREE = -1
"""The index of values that are in no book yet."""

_CHUNK = 1 << 22
"""Distances that are computed at one time."""


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight as indices.

    Attributes:
        book: number of its codebook.
        indices: (values / width,) int64, on the CPU; FREE where there is no entry yet.
    """

    book: int
    indices: Tensor


@dataclass(frozen=True, eq=False)
class Codebooks:
    """Books, and the weights that refer to them.

    Attributes:
        books: (entries, width) float32 each, on the CPU.
        codes: by key of the weight.
    """

    books: tuple[Tensor, ...]
    codes: Mapping[str, Codes] = field(default_factory=dict)

    def values(self, key: str, like: Tensor) -> Tensor:
        """A weight as its codes restore it, in the shape, dtype and place of another tensor; none may be free."""
        codes = self.codes[key]
        return self.books[codes.book][codes.indices].reshape(like.shape).to(like.device, like.dtype)

    def joined(self, other: Codebooks) -> Codebooks:
        """Those of two sets of weights."""
        shifted = {key: Codes(codes.book + len(self.books), codes.indices) for key, codes in other.codes.items()}
        return Codebooks((*self.books, *other.books), {**self.codes, **shifted})

    @classmethod
    def all(cls, parts: Iterable[Codebooks]) -> Codebooks:
        """Those of any number of sets of weights."""
        whole = cls((), {})
        for part in parts:
            whole = whole.joined(part)
        return whole


def nearest_entries(values: Tensor, book: Tensor) -> Tensor:
    """The nearest entry to each value, the first of equally near ones.

    Args:
        values: (n,) or (n, width), real.
        book: (entries, width), real.

    Returns:
        (n,) int64 on the device of the values.
    """
    values = values.reshape(-1, book.shape[1]).double()
    book = book.to(values.device).double()
    if book.shape[1] == 1:
        order = book[:, 0].argsort(stable=True)
        middles = (book[order][1:, 0] + book[order][:-1, 0]) / 2
        return order[torch.searchsorted(middles, values[:, 0].contiguous())]
    rows = max(1, _CHUNK // len(book))
    return torch.cat([torch.cdist(part, book).argmin(dim=1) for part in torch.split(values, rows)])


def ordered(codebooks: Codebooks, by_count: bool = False) -> Codebooks:
    """The same values in books without entries that are unused or twice there.

    Args:
        codebooks: no index is FREE.
        by_count: whether entries stand in the order of falling counts; else in that of rising values.
    """
    books: list[Tensor] = []
    codes = dict(codebooks.codes)
    numbers: dict[int, int] = {}
    for number, book in enumerate(codebooks.books):
        members = {key: own for key, own in codebooks.codes.items() if own.book == number}
        if not members:
            continue
        counts = torch.zeros(len(book), dtype=torch.int64)
        for own in members.values():
            counts += torch.bincount(own.indices, minlength=len(book))
        used = counts > 0
        kept, place = torch.unique(book[used] + 0.0, dim=0, return_inverse=True)
        if by_count:
            sums = torch.zeros(len(kept), dtype=torch.int64).index_add_(0, place, counts[used])
            order = sums.argsort(descending=True, stable=True)
            kept, place = kept[order], order.argsort()[place]
        moved = torch.zeros(len(book), dtype=torch.int64)
        moved[used] = place
        numbers[number] = len(books)
        books.append(kept)
        codes.update({key: Codes(numbers[number], moved[own.indices]) for key, own in members.items()})
    return Codebooks(tuple(books), codes)


class TiedBook:
    """A book while a model trains: the entries that learn are the means of their members, the others stay.

    Args:
        book: (entries, width) float32.
        learns: (entries,) bool.
        indices: of each weight, (values / width,) int64, FREE where the weight itself counts.
        damped: whether members get the sum of their gradients divided by the square root of their number. Of a whole
            network an entry may have a hundred thousand members, whose sum is more than most optimizers bear.
    """

    def __init__(self, book: Tensor, learns: Tensor, indices: Sequence[Tensor], damped: bool = False) -> None:
        self.book, self.learns, self.damped = book, learns, damped
        self._indices = [torch.where(own < 0, len(book), own) for own in indices]  # what is free is counted apart
        counts = torch.zeros(len(book) + 1, dtype=torch.float64)
        for own in self._indices:
            counts += torch.bincount(own, minlength=len(book) + 1)
        self._counts = counts[:-1]

    def values(self, weights: Sequence[Tensor]) -> Tensor:
        """The entries as they are now, (entries, width) float32, with gradient to the weights."""
        result: Tensor = _Means.apply(self, *weights)  # type: ignore[no-untyped-call]
        return result

    def means(self, weights: Sequence[Tensor]) -> Tensor:
        """The same without gradient."""
        entries, width = self.book.shape
        device = weights[0].device
        sums = torch.zeros(entries + 1, width, dtype=torch.float64, device=device)
        for weight, own in zip(weights, self._on(device), strict=True):
            sums.index_add_(0, own, weight.detach().reshape(-1, width).double())
        means = (sums[:-1] / self._counts.clamp(min=1).to(device)[:, None]).float()
        learning = self.learns & (self._counts > 0)
        return torch.where(learning.to(device)[:, None], means, self.book.to(device))

    def spread(self, gradient: Tensor, shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
        """What each weight gets of the gradient of the entries: that of its entry, where it learns."""
        learning = self.learns.to(gradient.device)[:, None]
        if self.damped:
            gradient = gradient / self._counts.clamp(min=1).sqrt().to(gradient.device, gradient.dtype)[:, None]
        padded = torch.cat([torch.where(learning, gradient, 0.0), gradient.new_zeros(1, gradient.shape[1])])
        own = self._on(gradient.device)
        return [padded[i].reshape(shape).to(dtype) for i, shape, dtype in zip(own, shapes, dtypes, strict=True)]

    def _on(self, device: torch.device) -> list[Tensor]:
        if any(own.device != device for own in self._indices):
            self._indices = [own.to(device) for own in self._indices]
        return self._indices


class _Means(torch.autograd.Function):
    """What is needed backwards is no saved tensor, so that several forward passes may share one result."""

    @staticmethod
    def forward(ctx: Any, tied: TiedBook, *weights: Tensor) -> Tensor:
        ctx.tied, ctx.shapes, ctx.dtypes = tied, [w.shape for w in weights], [w.dtype for w in weights]
        return tied.means(weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.tied.spread(gradients[0], ctx.shapes, ctx.dtypes))


def value_numbers(tensors: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The distinct values of some tensors together, ascending, and how often each is there."""
    found, counts = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for tensor in tensors:
        own, number = torch.unique(tensor.detach().float().cpu() + 0.0, return_counts=True)
        found, place = torch.unique(torch.cat([found, own]), return_inverse=True)
        counts = torch.zeros(len(found), dtype=torch.int64).index_add_(0, place, torch.cat([counts, number]))
    return found, counts


def entropy_of(counts: Tensor) -> float:
    """In bits a value, of values that are there so often."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum()) + 0.0
