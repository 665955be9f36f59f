"""The codebook section: tensors whose values, or groups of consecutive values, are entries of a table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError, TensorError
from ilwp_plugin.format.coding import AUTO, Histogram, Run, Segment
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import DTYPES, cast, is_finite, is_real
from ilwp_plugin.format.sections.base import SECTIONS, Context, Stored, Summary, TensorSection, read_info
from ilwp_plugin.format.sections.codes import Coding, StoredCodes, chosen_coder, write_codes
from ilwp_plugin.format.stream import ByteReader, ByteWriter
from ilwp_plugin.ledger import register_part

__all__ = [
    "INDICES",
    "CodebookSection",
    "CodebookTensor",
    "checked_books",
    "described",
    "read_books",
    "used_books",
    "write_books",
]

_ENTRIES = register_part("codebook", "Entries of codebooks.")
INDICES = register_part(
    "indices", "Tensors that are indices into codebooks: indices, their code tables, names and shapes."
)

_MAX_ENTRIES, _MAX_WIDTH = 1 << 15, 64
_CHUNK = 1 << 12
"""Indices that are looked up at one time."""


@dataclass(frozen=True, eq=False)
class CodebookTensor:
    """A tensor as indices.

    Attributes:
        info: its entry in the directory.
        book: number of its codebook.
        indices: (values / width,) integers, in row-major order.
    """

    info: TensorInfo
    book: int
    indices: NDArray[Any]


def checked_books(books: Sequence[NDArray[np.float32]], tensors: int) -> tuple[NDArray[np.float32], ...]:
    """Books of so many tensors as a file holds them, without -0. Raises TensorError where it cannot hold them."""
    if not 1 <= len(books) <= tensors:
        raise TensorError(f"{len(books)} codebooks for {tensors} tensors; expected 1 to as many as tensors")
    found = tuple(np.asarray(book, np.float32) + np.float32(0) for book in books)
    for book in found:
        if book.ndim != 2 or not (1 <= len(book) <= _MAX_ENTRIES and 1 <= book.shape[1] <= _MAX_WIDTH):
            raise TensorError(
                f"codebook of shape {book.shape}: expected 1 to {_MAX_ENTRIES:,} entries of 1 to {_MAX_WIDTH} values"
            )
        if not np.isfinite(book).all():
            raise TensorError("codebook: an entry is NaN or infinite")
    return found


def used_books(
    books: Sequence[NDArray[np.float32]], tensors: Sequence[CodebookTensor]
) -> tuple[list[NDArray[np.float32]], list[CodebookTensor]]:
    """The books that some tensors refer to, and the tensors with the numbers that these books have then."""
    numbers = {book: number for number, book in enumerate(sorted({tensor.book for tensor in tensors}))}
    return [books[book] for book in numbers], [replace(tensor, book=numbers[tensor.book]) for tensor in tensors]


def described(book: NDArray[np.float32], indices: NDArray[Any]) -> dict[str, Any]:
    """What there is to say of a tensor for `Summary`."""
    zeros = np.flatnonzero(~book.any(axis=1))
    return {
        "entries": len(book),
        "width": book.shape[1],
        "used": len(np.unique(indices)),
        "zeros": float(np.isin(indices, zeros).mean()),
        "entropy": Histogram.of(indices).entropy / book.shape[1],
    }


def write_books(writer: ByteWriter, books: Sequence[NDArray[np.float32]]) -> None:
    """Write codebooks, charged as their entries."""
    with writer.charge(_ENTRIES, None):
        writer.varint(len(books))
        for book in books:
            writer.varint(len(book))
            writer.varint(book.shape[1])
            writer.raw(np.ascontiguousarray(book, "<f4").tobytes())


def read_books(reader: ByteReader, directory: Sequence[TensorInfo]) -> list[NDArray[np.float32]]:
    """The inverse. Raises FormatError."""
    books = []
    with reader.charge(_ENTRIES, None):
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"{count} codebooks, the file has {len(directory)} tensors")
        for _ in range(count):
            entries, width = reader.varint(), reader.varint()
            if not (1 <= entries <= _MAX_ENTRIES and 1 <= width <= _MAX_WIDTH):
                raise reader.fail("range", f"a codebook of {entries} entries of {width} values")
            content = np.frombuffer(reader.raw(4 * entries * width), "<f4").reshape(entries, width)
            if not np.isfinite(content).all() or (np.signbit(content) & (content == 0)).any():
                raise reader.fail("range", "an entry of a codebook is NaN, infinite or -0")
            books.append(content)
    return books


@SECTIONS.register("codebook")
class CodebookSection(TensorSection):
    """Codebooks, and tensors that refer to them; several tensors may share one.

    Attributes:
        books: (entries, width) float32 each, finite; width values are coded by one index.
        tensors: in the order of the file.
        coding: how the indices are coded; a coder's name, or "auto".

    Raises:
        TensorError: a codebook that a file cannot hold, or an index that is in none.
    """

    number = 11
    name = "codebook"
    part = INDICES

    def __init__(
        self, books: Sequence[NDArray[np.float32]], tensors: Sequence[CodebookTensor], coding: Coding = AUTO
    ) -> None:
        self.books = checked_books(books, len(tensors))
        self.tensors: Sequence[CodebookTensor] = tuple(tensors)
        self.infos = tuple(tensor.info for tensor in tensors)
        self.coding = coding
        for tensor in self.tensors:
            book = self.books[tensor.book]
            if tensor.indices.size * book.shape[1] != tensor.info.numel:
                raise TensorError(
                    f"{tensor.info.name}: {tensor.indices.size} indices of {book.shape[1]} values for "
                    f"{tensor.info.numel}"
                )
            if int(tensor.indices.min()) < 0 or int(tensor.indices.max()) >= len(book):
                raise TensorError(f"{tensor.info.name}: an index beyond the {len(book)} entries of its codebook")
            if not is_finite(self.restore(tensor.info.name), tensor.info.dtype):
                raise TensorError(f"{tensor.info.name}: an entry is beyond the range of {tensor.info.dtype}")

    def restore(self, name: str) -> NDArray[Any]:
        number = self._positions[name]
        if isinstance(self.tensors, _StoredTensors):
            return self.tensors.restore(number)
        tensor = self.tensors[number]
        book = cast(self.books[tensor.book], tensor.info.dtype)
        return book[tensor.indices.astype(np.int64)].reshape(tensor.info.shape)

    def check(self) -> None:
        if isinstance(self.tensors, _StoredTensors):
            for number in range(len(self.tensors)):
                for _ in self.tensors.pieces(number):
                    pass

    def summaries(self) -> list[Summary]:
        found = []
        for tensor in self.tensors:
            details = described(self.books[tensor.book], tensor.indices)
            found.append(Summary(tensor.info.name, self.name, tensor.info.shape, details))
        return found

    def without(self, names: Collection[str]) -> CodebookSection | None:
        kept = [tensor for tensor in self.tensors if tensor.info.name not in names]
        return CodebookSection(*used_books(self.books, kept), chosen_coder(self.coding)) if kept else None

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        write_books(writer, self.books)
        writer.varint(len(self.tensors))
        for tensor in self.tensors:
            with writer.charge(INDICES, tensor.info.name):
                writer.varint(position[tensor.info.name])
                writer.varint(tensor.book)
        runs = [Run.of(tensor.indices.astype(np.int16).reshape(-1)) for tensor in self.tensors]
        accounts = [(INDICES, tensor.info.name) for tensor in self.tensors]
        write_codes(writer, accounts, runs, self.coding, INDICES)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> CodebookSection:
        directory = context.directory
        books = read_books(reader, directory)
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a codebook section of {count} tensors, the file has {len(directory)}")
        heads: list[tuple[TensorInfo, int]] = []
        names: set[str] = set()
        for _ in range(count):
            with reader.charge_later() as entry:
                info = read_info(reader, directory, "a codebook section")
                entry.account = (INDICES, info.name)
                book = reader.varint()
                if info.storage != "coded" or not is_real(info.dtype) or not info.numel:
                    raise reader.fail("unfit", f"{info.name}: in a codebook section, and {info.storage}, {info.dtype}")
                if book >= len(books) or info.numel % books[book].shape[1]:
                    raise reader.fail("position", f"{info.name}: codebook {book} does not fit its {info.numel} values")
                if info.name in names:
                    raise reader.fail("ownership", f"{info.name}: twice in a codebook section")
                names.add(info.name)
                heads.append((info, book))
        segments = [Segment.flat(info.numel // books[book].shape[1]) for info, book in heads]
        accounts = [(INDICES, info.name) for info, _ in heads]
        codes = StoredCodes(reader, accounts, segments, INDICES, context.budget)
        reader.finish()
        section = cls.__new__(cls)
        section.books, section.coding = tuple(books), codes.coding
        section.infos = tuple(info for info, _ in heads)
        section.tensors = _StoredTensors(heads, section.books, codes, reader.where)
        return section


class _StoredTensors(Stored[CodebookTensor]):
    """The tensors as they stand in a file; each is decoded when it is asked for."""

    def __init__(
        self,
        heads: Sequence[tuple[TensorInfo, int]],
        books: Sequence[NDArray[np.float32]],
        codes: StoredCodes,
        where: str,
    ) -> None:
        super().__init__(len(heads))
        self._heads, self._books, self._codes, self._where = heads, books, codes, where

    def _decoded(self, number: int) -> CodebookTensor:
        info, book = self._heads[number]
        return CodebookTensor(info, book, self._codes.layer(number))

    def pieces(self, number: int) -> Iterator[NDArray[Any]]:
        """The values of a tensor in its dtype, (n, width) some at a time."""
        info, number_of_book = self._heads[number]
        book = cast(self._books[number_of_book], info.dtype)
        finite = is_finite(book, info.dtype)
        for piece in self._codes.pieces(number):
            for start in range(0, len(piece), _CHUNK):
                part = piece[start : start + _CHUNK]
                if int(part.min()) < 0 or int(part.max()) >= len(book):
                    raise self._fail(info, "code", f"an index beyond the {len(book)} entries")
                values = book[part]
                if not finite and not is_finite(values, info.dtype):
                    raise self._fail(info, "not-finite", f"an entry is beyond the range of {info.dtype}")
                yield values

    def restore(self, number: int) -> NDArray[Any]:
        """The values of a tensor."""
        info, book = self._heads[number]
        restored = np.empty(
            (info.numel // self._books[book].shape[1], self._books[book].shape[1]), DTYPES[info.dtype].carrier
        )
        at = 0
        for values in self.pieces(number):
            restored[at : at + len(values)] = values
            at += len(values)
        return restored.reshape(info.shape)

    def _fail(self, info: TensorInfo, code: str, what: str) -> FormatError:
        return FormatError(f"{self._where}: {info.name}: {what}", code)
