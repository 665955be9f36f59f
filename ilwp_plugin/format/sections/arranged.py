"""The arranged codebook section: like the codebook section, with indices in a form that takes fewer bytes.

Where most indices are one and the same, it is left out and the others come with their distances (relative indices, Han
et al. 2015). Where books are ordered alike and a tensor is like an earlier one, position by position, as depthwise
kernels of consecutive layers are, the differences of the indices are stored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError, TensorError
from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.coding import AUTO, Run, Segment, fit_coder
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import cast, is_finite, is_real
from ilwp_plugin.format.sections.base import SECTIONS, Context, Summary, TensorSection, read_info
from ilwp_plugin.format.sections.codebook import (
    INDICES,
    CodebookTensor,
    checked_books,
    described,
    read_books,
    used_books,
    write_books,
)
from ilwp_plugin.format.sections.codes import Coding, StoredCodes, chosen_coder, write_codes
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["ArrangedSection", "ArrangedTensor", "arranged"]

Form = Literal["plain", "sparse", "collocated"]
FORMS: tuple[Form, ...] = ("plain", "sparse", "collocated")
"""By their numbers in a file."""

_LONGEST = 255
"""Indices that one symbol of a distance can leave out, at most."""


@dataclass(frozen=True, eq=False)
class ArrangedTensor(CodebookTensor):
    """A tensor as indices, and the form in which they are stored.

    Attributes:
        form: "plain" as they are; "sparse" without the index that is there most often; "collocated" as differences to
            an earlier tensor.
        common: of the form "sparse", the index that is left out.
        longest: likewise, how many one symbol leaves out at most.
        before: of the form "collocated", the number of the earlier tensor in the section.
    """

    form: Form = "plain"
    common: int = 0
    longest: int = _LONGEST
    before: int = 0


@SECTIONS.register("arranged")
class ArrangedSection(TensorSection):
    """Codebooks, and tensors that refer to them.

    Attributes:
        books: see `CodebookSection`.
        tensors: in the order of the file.
        coding: see `CodebookSection`.

    Raises:
        TensorError: what no file can hold.
    """

    number = 13
    name = "arranged"
    part = INDICES
    checked_by_restoring = True

    def __init__(
        self, books: Sequence[NDArray[np.float32]], tensors: Sequence[ArrangedTensor], coding: Coding = AUTO
    ) -> None:
        self.books = checked_books(books, len(tensors))
        self.tensors = tuple(tensors)
        self.infos = tuple(tensor.info for tensor in tensors)
        self.coding = coding
        self._stored: _Stored | None = None
        for number, tensor in enumerate(self.tensors):
            book = self.books[tensor.book]
            name, count = tensor.info.name, len(book)
            if tensor.indices.size * book.shape[1] != tensor.info.numel:
                raise TensorError(f"{name}: {tensor.indices.size} indices of {book.shape[1]} for {tensor.info.numel}")
            if int(tensor.indices.min()) < 0 or int(tensor.indices.max()) >= count:
                raise TensorError(f"{name}: an index beyond the {count} entries of its codebook")
            if not is_finite(cast(book, tensor.info.dtype)[np.unique(tensor.indices)], tensor.info.dtype):
                raise TensorError(f"{name}: an entry is beyond the range of {tensor.info.dtype}")
            if tensor.form == "collocated" and not 0 <= tensor.before < number:
                raise TensorError(f"{name}: its indices are differences to tensor {tensor.before}, which is not before")
            if tensor.form == "sparse" and (
                bool((tensor.indices == tensor.common).all()) or not 1 <= tensor.longest <= _LONGEST
            ):
                raise TensorError(f"{name}: nothing is left without index {tensor.common}, or {tensor.longest} is odd")

    def _indices(self, number: int) -> NDArray[Any]:
        return self.tensors[number].indices if self._stored is None else self._stored.indices(number)

    def restore(self, name: str) -> NDArray[Any]:
        number = self._positions[name]
        info = self.infos[number]
        book = cast(self.books[self.tensors[number].book], info.dtype)
        values: NDArray[Any] = book[self._indices(number)].reshape(info.shape)
        if self._stored is not None and not is_finite(values, info.dtype):
            raise self._stored.fail(info, "not-finite", f"an entry is beyond the range of {info.dtype}")
        return values

    def check(self) -> None:
        for name in self.names:
            self.restore(name)

    def summaries(self) -> list[Summary]:
        found = []
        for number, tensor in enumerate(self.tensors):
            details = {**described(self.books[tensor.book], self._indices(number)), "form": tensor.form}
            found.append(Summary(tensor.info.name, self.name, tensor.info.shape, details))
        return found

    def without(self, names: Collection[str]) -> ArrangedSection | None:
        kept = [
            CodebookTensor(tensor.info, tensor.book, self._indices(number).astype(np.int64))
            for number, tensor in enumerate(self.tensors)
            if tensor.info.name not in names
        ]
        return arranged(*used_books(self.books, kept), chosen_coder(self.coding)) if kept else None

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        write_books(writer, self.books)
        writer.varint(len(self.tensors))
        accounts = [(INDICES, tensor.info.name) for tensor in self.tensors]
        gaps: list[tuple[tuple[str, str], Run]] = []
        runs: list[Run] = []
        for number, (tensor, account) in enumerate(zip(self.tensors, accounts, strict=True)):
            indices = self._indices(number).astype(np.int64).reshape(-1)
            with writer.charge(*account):
                writer.varint(position[tensor.info.name])
                writer.varint(tensor.book)
                writer.u8(FORMS.index(tensor.form))
                if tensor.form == "sparse":
                    distances, indices = _without(indices, tensor.common, tensor.longest)
                    writer.varint(tensor.common)
                    writer.u8(tensor.longest)
                    writer.varint(len(distances))
                    writer.varint(len(indices))
                    gaps.append((account, Run.of(distances.astype(np.int16))))
                elif tensor.form == "collocated":
                    writer.varint(number - tensor.before)
                    indices = _differences(indices, self._indices(tensor.before))
            runs.append(Run.of(indices.astype(np.int32 if tensor.form == "collocated" else np.int16)))
        together = [*(run for _, run in gaps), *runs]
        write_codes(writer, [*(account for account, _ in gaps), *accounts], together, self.coding, INDICES)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> ArrangedSection:
        directory = context.directory
        books = read_books(reader, directory)
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"an arranged section of {count} tensors, the file has {len(directory)}")
        tensors: list[ArrangedTensor] = []
        counts: list[tuple[int, int]] = []
        names: set[str] = set()
        for number in range(count):
            with reader.charge_later() as entry:
                info = read_info(reader, directory, "an arranged section")
                entry.account = (INDICES, info.name)
                if info.storage != "coded" or not is_real(info.dtype) or not info.numel:
                    raise reader.fail("unfit", f"{info.name}: in an arranged section, and {info.storage}, {info.dtype}")
                book = reader.varint()
                if book >= len(books) or info.numel % books[book].shape[1]:
                    raise reader.fail("position", f"{info.name}: codebook {book} does not fit its {info.numel} values")
                if info.name in names:
                    raise reader.fail("ownership", f"{info.name}: twice in an arranged section")
                names.add(info.name)
                tensor, sizes = _head(reader, info, book, books, number)
                tensors.append(tensor)
                counts.append(sizes)
        sparse = [number for number, tensor in enumerate(tensors) if tensor.form == "sparse"]
        accounts = [(INDICES, tensor.info.name) for tensor in tensors]
        segments = [*(Segment.flat(counts[number][0]) for number in sparse), *(Segment.flat(n) for _, n in counts)]
        charged = [*(accounts[number] for number in sparse), *accounts]
        codes = StoredCodes(reader, charged, segments, INDICES, context.budget)
        reader.finish()
        section = cls.__new__(cls)
        section.books, section.coding = tuple(books), codes.coding
        section.infos = tuple(tensor.info for tensor in tensors)
        section.tensors = tuple(tensors)
        section._stored = _Stored(section.tensors, section.books, codes, context.budget, reader.where)
        return section


def _head(
    reader: ByteReader, info: TensorInfo, book: int, books: Sequence[NDArray[np.float32]], number: int
) -> tuple[ArrangedTensor, tuple[int, int]]:
    """The form of a tensor, and how many distances and how many indices are stored of it."""
    whole = info.numel // books[book].shape[1]
    form = reader.u8()
    if form >= len(FORMS):
        raise reader.fail("form", f"{info.name}: indices in form {form}")
    tensor = ArrangedTensor(info, book, _NOTHING, FORMS[form])
    if tensor.form == "plain":
        return tensor, (0, whole)
    if tensor.form == "collocated":
        back = reader.varint()
        if not 1 <= back <= number:
            raise reader.fail("reference", f"{info.name}: differences to tensor {number - back} of the section")
        return replace(tensor, before=number - back), (0, whole)
    common, longest, distances, indices = reader.varint(), reader.u8(), reader.varint(), reader.varint()
    if common >= len(books[book]) or not longest or not 1 <= indices <= distances <= whole:
        raise reader.fail(
            "count",
            f"{info.name}: {indices} indices besides {common} at {distances} distances up to {longest}, of {whole}",
        )
    return replace(tensor, common=common, longest=longest), (distances, indices)


_NOTHING: NDArray[Any] = np.empty(0, np.int16)


class _Stored:
    """Indices as they stand in a file; each tensor's are decoded when they are asked for."""

    def __init__(
        self,
        tensors: Sequence[ArrangedTensor],
        books: Sequence[NDArray[np.float32]],
        codes: StoredCodes,
        budget: Budget,
        where: str,
    ) -> None:
        self._tensors, self._books, self._codes, self._budget, self._where = tensors, books, codes, budget, where
        sparse = [number for number, tensor in enumerate(tensors) if tensor.form == "sparse"]
        self._gaps = {number: i for i, number in enumerate(sparse)}
        referred = {tensor.before for tensor in tensors if tensor.form == "collocated"}
        self._kept: dict[int, NDArray[Any] | None] = dict.fromkeys(referred)

    def indices(self, number: int) -> NDArray[Any]:
        """Of a tensor, checked."""
        chain = [number]  # from it back to one that needs no other
        while self._tensors[chain[-1]].form == "collocated" and self._kept.get(chain[-1]) is None:
            chain.append(self._tensors[chain[-1]].before)
        found: NDArray[Any] = _NOTHING
        for one in reversed(chain):
            kept = self._kept.get(one)
            found = self._decoded(one, found) if kept is None else kept
            if one in self._kept and kept is None:  # else others would decode it again and again
                self._budget.hold(found.nbytes, f"the indices of {self._tensors[one].info.name}")
                self._kept[one] = found
        return found

    def _decoded(self, number: int, before: NDArray[Any]) -> NDArray[Any]:
        tensor = self._tensors[number]
        whole = tensor.info.numel // self._books[tensor.book].shape[1]
        entries = len(self._books[tensor.book])
        self._budget.borrow(4 * whole, f"the indices of {tensor.info.name}")
        own = self._codes.layer(len(self._gaps) + number)
        if tensor.form == "plain":
            found: NDArray[Any] = own
        elif tensor.form == "collocated":
            found = own.astype(np.int32)
            shared = min(whole, len(before))
            found[:shared] += before[:shared]
        else:
            distances = self._codes.layer(self._gaps[number])
            self._budget.borrow(16 * len(distances), f"the distances of {tensor.info.name}")
            if int(distances.min()) < 0 or int(distances.max()) > tensor.longest or distances[-1] == tensor.longest:
                raise self.fail(tensor.info, "code", f"a distance beyond {tensor.longest}, or one that leads nowhere")
            ends = np.cumsum(np.minimum(distances.astype(np.int64) + 1, tensor.longest))
            ends = ends[distances < tensor.longest]
            if len(ends) != len(own) or ends[-1] > whole or bool((own == tensor.common).any()):
                raise self.fail(tensor.info, "code", f"{len(own)} indices do not fit their distances")
            found = np.full(whole, tensor.common, np.int16)
            found[ends - 1] = own
        if int(found.min()) < 0 or int(found.max()) >= entries:
            raise self.fail(tensor.info, "code", f"an index beyond the {entries} entries")
        return found

    def fail(self, info: TensorInfo, code: str, what: str) -> FormatError:
        """An error of this file."""
        return FormatError(f"{self._where}: {info.name}: {what}", code)


def _without(indices: NDArray[Any], common: int, longest: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The distances of the indices that are not `common`, and these indices.

    A distance below `longest` leaves out so many and is followed by an index; `longest` leaves out so many, and another
    distance follows.
    """
    at = np.flatnonzero(indices != common)
    gaps = np.diff(at, prepend=-1) - 1
    fillers, rest = np.divmod(gaps, longest)
    ends = np.cumsum(fillers + 1)
    distances = np.full(int(ends[-1]), longest, np.int64)
    distances[ends - 1] = rest
    return distances, indices[at]


def _differences(indices: NDArray[Any], before: NDArray[Any]) -> NDArray[Any]:
    """To the indices at the same place of another tensor, as far as that has some."""
    shared = min(len(indices), before.size)
    found = indices.astype(np.int64)
    found[:shared] -= before.reshape(-1)[:shared].astype(np.int64)
    return found


def arranged(
    books: Sequence[NDArray[np.float32]], tensors: Sequence[CodebookTensor], coder: str = AUTO
) -> ArrangedSection:
    """Every tensor in the form that takes the fewest bytes by itself.

    Args:
        books: in the order of their values, for differences to be small.
        tensors: of which those of depthwise kernels (n, 1, ...) may be stored as differences to the last such one.
        coder: name of a coder, or AUTO.
    """
    found: list[ArrangedTensor] = []
    last: int | None = None
    for number, tensor in enumerate(tensors):
        indices = tensor.indices.astype(np.int64).reshape(-1)
        shape = tensor.info.shape
        choices = [(_size(indices, coder), ArrangedTensor(tensor.info, tensor.book, tensor.indices))]
        common = int(np.bincount(indices).argmax())
        if bool((indices != common).any()):
            for longest in (_LONGEST, 31, 7):
                distances, rest = _without(indices, common, longest)
                own = replace(choices[0][1], form="sparse", common=common, longest=longest)
                choices.append((_size(distances, coder) + _size(rest, coder) + 5, own))
        if len(shape) > 2 and shape[1] == 1 and shape[0] > 1:
            if last is not None and tensors[last].info.shape[1:] == shape[1:]:
                differences = _differences(indices, tensors[last].indices)
                own = replace(choices[0][1], form="collocated", before=last)
                choices.append((_size(differences, coder) + 1, own))
            last = number
        found.append(min(choices, key=lambda choice: choice[0])[1])
    return ArrangedSection(books, found, coder)


def _size(symbols: NDArray[Any], coder: str) -> int:
    return fit_coder(Run.of(symbols.astype(np.int32)), coder).nbytes
