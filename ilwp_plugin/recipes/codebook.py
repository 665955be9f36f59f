"""What recipes with codebooks share: claims of weights, training, storage, statistics.

Such a recipe says how weights become indices into books (`CodebookRecipe.share`), and what happens in a training before
they do (a subclass of `CodebookTraining`). The rest is here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.sections import CodebookSection, CodebookTensor, Section, arranged
from ilwp_plugin.method.codebooks import (
    Codebooks,
    Codes,
    TiedBook,
    entropy_of,
    nearest_entries,
    ordered,
    value_numbers,
)
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.tensors import dtype_name
from ilwp_plugin.recipes.base import (
    Claims,
    Encoding,
    EncodingContext,
    Options,
    Recipe,
    Request,
    TrainingPart,
    WeightSource,
    check_finite,
    claimed_weights,
    kernels_of,
)

__all__ = [
    "CodebookClaims",
    "CodebookOptions",
    "CodebookRecipe",
    "CodebookTraining",
    "Groups",
    "Learned",
    "OwnOptimizer",
    "whole_book",
]

Groups = Sequence[Sequence[str]]
"""Keys of weights, those that share a book together."""


class CodebookOptions(Options):
    """Of every recipe with codebooks."""

    codebook: Literal["layer", "kind", "network"] = Field(
        default="layer",
        description="Which weights share a codebook: those of a layer, of all layers of a kind (dense convolutions, "
        "depthwise ones, linear layers, others), or of the whole network.",
    )


@dataclass(frozen=True)
class CodebookClaims(Claims):
    """Weights, and which of them share a book.

    Attributes:
        groups: of each key, the name of its group.
    """

    groups: Mapping[str, str] = field(default_factory=dict)

    def grouped(self, keys: Collection[str] | None = None) -> list[list[str]]:
        """The groups, or what they have of some keys, each in the order of the claims."""
        found: dict[str, list[str]] = {}
        for key in self.tensors:
            if keys is None or key in keys:
                found.setdefault(self.groups[key], []).append(key)
        return list(found.values())


class CodebookRecipe(Recipe):
    """Weights as indices into books."""

    options: CodebookOptions
    training: ClassVar[type[CodebookTraining]]
    """What it does in a training."""

    @abstractmethod
    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        """Make books of weights as they are: without training, or at its end.

        Args:
            weights: by key, real and finite, on any device.
            groups: of all these keys.

        Returns:
            Codes for every key, of which none is free.
        """

    def claim(self, network: Network, free: Collection[str], request: Request) -> Claims:
        """Every weight of two dimensions or more that the scopes allow."""
        keys, left = claimed_weights(self.options, network, free)
        return CodebookClaims(keys, left, {key: self._group(network, key) for key in keys})

    def _group(self, network: Network, key: str) -> str:
        if self.options.codebook == "network":
            return ""
        if self.options.codebook == "layer":
            return key
        layer, shape = network.layers[network.layer_of(key)], network.state[key].shape
        depthwise = len(shape) > 2 and shape[1] == 1
        return f"{layer.kind} {len(shape)} {depthwise}"

    def encode(self, claims: Claims, context: EncodingContext) -> Encoding:
        return _CodebookEncoding(self, claims, context)

    def train(
        self,
        network: Network,
        claims: Claims,
        sources: Mapping[str, WeightSource],
        steps: Mapping[str, float],
        request: Request,
    ) -> TrainingPart | None:
        own = {key: sources[key] for key in claims.tensors if key in sources}
        assert isinstance(claims, CodebookClaims) or not own
        return self.training(self, own, claims.grouped(own)) if isinstance(claims, CodebookClaims) and own else None


class Learned(CodebookRecipe):
    """A recipe whose books are made already; what they leave out gets books as the recipe makes them."""

    def __init__(self, recipe: CodebookRecipe, codebooks: Codebooks) -> None:
        super().__init__(recipe.options)
        self._recipe, self._codebooks = recipe, codebooks

    def share(self, weights: Mapping[str, Tensor], groups: Groups) -> Codebooks:
        known = self._codebooks.codes
        missing = [rest for group in groups if (rest := [key for key in group if key not in known])]
        if not missing:
            return self._codebooks
        return self._codebooks.joined(self._recipe.share({k: weights[k] for group in missing for k in group}, missing))


class _CodebookEncoding(Encoding):
    """Books are made of all weights together when the first one is asked for.

    Codes follow from the weights alone: errors are not fed back, since a group's values stand next to each other in no
    order of the inputs.
    """

    def __init__(self, recipe: CodebookRecipe, claims: Claims, context: EncodingContext) -> None:
        super().__init__(claims, context)
        self._recipe = recipe
        self._codebooks: Codebooks | None = None
        self._stored: dict[str, str] = {}

    def _made(self) -> Codebooks:
        if self._codebooks is None:
            assert isinstance(self.claims, CodebookClaims)
            state = self.context.network.state
            for key in self.claims.tensors:
                check_finite(self.context.infos[key].name, state[key])
            weights = {key: state[key].detach() for key in self.claims.tensors}
            self._codebooks = self._recipe.share(weights, self.claims.grouped())
        return self._codebooks

    def quantize(self, key: str, value: Tensor, feedback: Feedback | None = None) -> Tensor:
        info = self.context.infos[key]
        restored = self._made().values(key, value)
        if not bool(restored.isfinite().all()):
            raise TensorError(
                f"tensor {info.name!r}: overflow: an entry of its codebook is beyond the range of "
                f"{dtype_name(value.dtype)}; leave the layer out with `ignored_scopes`"
            )
        if bool(value.any()) and not bool(restored.any()):
            self.notes[self.context.network.layer_of(key)] = "becomes 0 as a whole"
        self._stored[info.name] = key
        self.done.add(info.name)
        self.context.progress(key, kernels_of(value))
        return restored

    def sections(self) -> Sequence[Section]:
        order = dict.fromkeys(self.context.infos[key].name for key in self.claims.tensors)
        keys = [self._stored[name] for name in order if name in self._stored]
        if not keys:
            return ()
        made = self._made()
        own = Codebooks(made.books, {key: made.codes[key] for key in keys})
        infos = [self.context.infos[key] for key in keys]
        choices: list[Section] = []
        for by_count in (False, True):
            whole = ordered(own, by_count)
            tensors = [
                CodebookTensor(info, whole.codes[key].book, whole.codes[key].indices.numpy())
                for key, info in zip(keys, infos, strict=True)
            ]
            books = [np.asarray(book.numpy(), np.float32) for book in whole.books]
            choices.append(CodebookSection(books, tensors, self._recipe.options.coder))
            if not by_count:
                choices.append(arranged(books, tensors, self._recipe.options.coder))
        return [min(choices, key=lambda section: section.encode(infos).ledger.file_bytes)]


class CodebookTraining(TrainingPart):
    """Weights while they become indices.

    At first all values are free: the model computes with them as they are (`free`). `hold` gives some or all of them to
    books, at the beginning of an epoch (`phase`) or after a step. At the end `final` completes the books.

    Args:
        recipe: the recipe.
        sources: by key.
        groups: of all keys.

    Attributes:
        groups: see above.
        books: those that hold values by now; None before.
        epoch: of the training that has begun, counted from 0; -1 before.
        damped: how members of an entry learn, see `TiedBook`.
    """

    damped: bool = False

    def __init__(self, recipe: CodebookRecipe, sources: Mapping[str, WeightSource], groups: Groups) -> None:
        super().__init__(sources)
        self.recipe, self.groups = recipe, groups
        self.books: Codebooks | None = None
        self.epoch, self._first = -1, 0
        self._learns: tuple[Tensor, ...] = ()
        self._tied: dict[int, tuple[list[str], TiedBook]] = {}
        self._held: dict[str, Tensor] = {}
        self._cached: dict[int, tuple[Any, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies, as toolkits make them: without what belongs to a forward pass."""
        return {**self.__dict__, "_cached": {}}

    # What subclasses say.

    def phase(self, epoch: int) -> None:
        """An epoch begins: `hold` values, or change what training does. Counted from 0, the first one in which weights
        are quantized at all; each is told once."""

    def free(self, key: str, weight: Tensor) -> Tensor:
        """What the model computes with where values are free; in the shape of the weight."""
        return weight

    def completed(self, books: Codebooks, weights: Mapping[str, Tensor]) -> Codebooks:
        """Books in which some values are still free, with these given to entries; by default to the nearest ones."""
        codes = dict(books.codes)
        for key, own in books.codes.items():
            if bool((own.indices < 0).any()):
                nearest = nearest_entries(weights[key].detach().cpu(), books.books[own.book])
                codes[key] = Codes(own.book, torch.where(own.indices < 0, nearest, own.indices))
        return replace(books, codes=codes)

    # What they use.

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """By key, the weights that train, with all masks applied, without gradient."""
        return {key: source.weight().detach() for key, source in self.sources.items()}

    def hold(self, books: Codebooks, learns: Sequence[Tensor] | None = None) -> None:
        """Give values to books.

        Args:
            books: with codes for every key; FREE where a value is not held.
            learns: of each book, (entries,) bool, whether an entry is the mean of its members from now on; None for no
                entry. Before, each entry is as the book has it.
        """
        self.books = books
        self._learns = (
            tuple(learns)
            if learns is not None
            else tuple(torch.zeros(len(book), dtype=torch.bool) for book in books.books)
        )
        self._tied, self._held, self._cached = {}, {}, {}
        for number, book in enumerate(books.books):
            keys = [key for key in self.sources if books.codes[key].book == number]
            indices = [books.codes[key].indices for key in keys]
            if keys:
                self._tied[number] = keys, TiedBook(book, self._learns[number], indices, self.damped)
                self._held.update(zip(keys, indices, strict=True))

    @torch.no_grad()
    def current(self) -> Codebooks:
        """The books with their entries as they are now."""
        assert self.books is not None
        books = list(self.books.books)
        for number, (keys, tied) in self._tied.items():
            books[number] = tied.means([self.sources[key].weight() for key in keys]).cpu()
        return replace(self.books, books=tuple(books))

    @torch.no_grad()
    def final(self) -> Codebooks:
        """The books that the file gets if training ends now."""
        weights = self.weights()
        if self.books is None:
            for key, weight in weights.items():
                check_finite(key, weight)
            return self.recipe.share(weights, self.groups)
        current = self.current()
        if any(bool((codes.indices < 0).any()) for codes in current.codes.values()):
            return self.completed(current, weights)
        return current

    # What a training asks for.

    def weight(self, key: str, weight: Tensor) -> Tensor:
        if not self.enabled:
            return weight
        if self.books is None:
            return self.free(key, weight)
        number = self.books.codes[key].book
        indices = self._held[key]
        if indices.device != weight.device:
            indices = self._held[key] = indices.to(weight.device)
        book = self._entries(number, key, weight)
        held = indices >= 0
        values = book[indices.clamp(min=0)].to(weight.dtype)
        rest = self.free(key, weight).reshape(values.shape)
        # Always with a path to the weight, or a process group waits for a gradient that never comes.
        return torch.where(held[:, None], values, rest).reshape(weight.shape)

    def _entries(self, number: int, key: str, weight: Tensor) -> Tensor:
        """Of a book, as they are now; computed once for all weights that share it."""
        keys, tied = self._tied[number]
        if keys == [key]:
            return tied.values([weight])
        weights = [weight if other == key else self.sources[other].weight() for other in keys]
        versions = [(other.data_ptr(), other._version) for other in weights if other.is_leaf]
        state = (versions, torch.is_grad_enabled()) if len(versions) == len(weights) else None
        known = self._cached.get(number)
        if state is not None and known is not None and known[0] == state:
            return known[1]
        values = tied.values(weights)
        self._cached[number] = (state, values)
        return values

    def restored(self, key: str, weight: Tensor) -> Tensor:
        return self.final().values(key, weight)

    def reconstructed(self) -> dict[str, Tensor]:
        final = self.final()
        return {key: final.values(key, weight) for key, weight in self.weights().items()}

    def begin_epoch(self, epoch: int) -> None:
        if not self.enabled or epoch <= self.epoch:  # an epoch is told again after a resumption
            return
        if self.epoch < 0:
            self._first = epoch
        self.epoch = epoch
        self.phase(epoch - self._first)

    def finish(self) -> None:
        self.hold(self.final())

    def encoder(self) -> Recipe | None:
        return Learned(self.recipe, self.final())

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"epoch": self.epoch, "first": self._first, "books": None}
        if self.books is not None:
            state["books"] = [list(self.books.books), list(self._learns)]
            state["codes"] = {key: [codes.book, codes.indices] for key, codes in self.books.codes.items()}
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.epoch, self._first = int(state["epoch"]), int(state["first"])
        self.books = None
        if state["books"] is not None:
            books, learns = state["books"]
            codes = {key: Codes(int(book), indices.cpu()) for key, (book, indices) in state["codes"].items()}
            self.hold(Codebooks(tuple(book.cpu() for book in books), codes), [own.cpu() for own in learns])

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        found, counts = value_numbers(self.reconstructed().values())
        zeros = int(counts[found == 0].sum())
        name = self.recipe.name
        return {
            f"{name}: distinct values": float(len(found)),
            f"{name}: entropy in bits": entropy_of(counts),
            f"{name}: zeros": zeros / int(counts.sum()),
        }


def whole_book(book: Tensor, weights: Mapping[str, Tensor]) -> Codebooks:
    """Of weights that share one book: each value gets the nearest entry.

    Args:
        book: (entries, width) float32.
        weights: by key.
    """
    book = book.cpu()
    return Codebooks((book,), {key: Codes(0, nearest_entries(w.detach().cpu(), book)) for key, w in weights.items()})


class OwnOptimizer:
    """Adam for what a recipe learns besides the weights, whatever optimizer the model has.

    Gradients are averaged over the processes of a group, so that all of them stay alike.

    Args:
        parameters: by name, with the learning rate of each.
    """

    def __init__(self, parameters: Mapping[str, tuple[Tensor, float]]) -> None:
        self._parameters = {name: tensor.requires_grad_() for name, (tensor, _) in parameters.items()}
        self._adam = torch.optim.Adam([{"params": [tensor], "lr": rate} for tensor, rate in parameters.values()])

    def step(self) -> None:
        """With the gradients that are there; they are gone afterwards."""
        if all(tensor.grad is None for tensor in self._parameters.values()):
            return
        if dist.is_available() and dist.is_initialized():
            for tensor in self._parameters.values():
                tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                dist.all_reduce(tensor.grad)
                tensor.grad /= dist.get_world_size()
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """For checkpoints."""
        values = {name: tensor.detach().clone() for name, tensor in self._parameters.items()}
        return {"values": values, "adam": self._adam.state_dict()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, tensor in self._parameters.items():
            tensor.copy_(state["values"][name])
        self._adam.load_state_dict(dict(state["adam"]))
