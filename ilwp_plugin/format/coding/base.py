"""What every coder offers, and the registry of coders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.stream import ByteReader
from ilwp_plugin.registry import Registry

__all__ = ["AUTO", "CODERS", "Coder", "Fit", "Histogram", "Run", "Segment", "Symbols", "coder_of_id", "fit_coder"]

Symbols = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often each symbol occurs.

    Attributes:
        low: the smallest symbol.
        counts: (span,) int64; occurrences of low, low + 1, ...; the first and the last are not 0.
    """

    low: int
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, symbols: NDArray[Any]) -> Histogram:
        """The histogram of one or more integer symbols, of any shape."""
        flat = np.asarray(symbols).ravel()
        low = int(flat.min())
        return cls(low, np.bincount(flat.astype(np.int64) - low).astype(np.int64))

    def __add__(self, other: Histogram) -> Histogram:
        low = min(self.low, other.low)
        high = max(self.low + len(self.counts), other.low + len(other.counts))
        counts = np.zeros(high - low, dtype=np.int64)
        for part in (self, other):
            start = part.low - low
            counts[start : start + len(part.counts)] += part.counts
        return Histogram(low, counts)

    @property
    def entropy(self) -> float:
        """Order-0 entropy in bits a symbol."""
        p = self.counts[self.counts > 0] / self.counts.sum()
        return float(-(p * np.log2(p)).sum()) + 0.0


@dataclass(frozen=True)
class Segment:
    """The symbols of one layer within a payload.

    Attributes:
        count: how many.
        shape: how they lie, for coders that look at neighbours: (kernels, taps) or the shape of the tensor; (count,)
            where there is nothing to know. Its product is the count.
    """

    count: int
    shape: tuple[int, ...]

    @classmethod
    def flat(cls, count: int) -> Segment:
        """Without a shape."""
        return cls(count, (count,))


@dataclass(frozen=True, eq=False)
class Run:
    """The symbols of consecutive layers, to be coded together.

    Attributes:
        symbols: of each layer, 1-D, not empty.
        segments: likewise.
    """

    symbols: tuple[Symbols, ...]
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, symbols: Symbols, segment: Segment | None = None) -> Run:
        """A single layer."""
        return cls((symbols,), (segment or Segment.flat(len(symbols)),))

    @cached_property
    def histogram(self) -> Histogram:
        """Of all symbols."""
        total = Histogram.of(self.symbols[0])
        for symbols in self.symbols[1:]:
            total = total + Histogram.of(symbols)
        return total

    def __add__(self, other: Run) -> Run:
        both = Run(self.symbols + other.symbols, self.segments + other.segments)
        both.__dict__["histogram"] = self.histogram + other.histogram
        return both

    @property
    def joined(self) -> Symbols:
        """All symbols, in one array."""
        return self.symbols[0] if len(self.symbols) == 1 else np.concatenate(self.symbols)


class Coder(ABC):
    """A coder with a stored model: fit it to symbols, store its table once, code any number of symbols with it.

    `Model` below is whatever the coder needs to encode and decode; it may be adaptive and hold next to nothing. The
    section that holds the symbols stores the table, the number of symbols and the length of the payload.
    """

    id: int
    """Number in the file format; never reused. Numbers from 128 on are for private use."""

    @abstractmethod
    def fit(self, run: Run) -> Any:
        """The model that codes these symbols in the fewest bits."""

    @abstractmethod
    def table(self, model: Any) -> bytes:
        """The stored form of a model, self-delimiting."""

    @abstractmethod
    def read_table(self, reader: ByteReader) -> Any:
        """The inverse of `table`. Raises FormatError where no encoder could have written these bytes."""

    @abstractmethod
    def bits(self, model: Any, run: Run) -> int:
        """Payload bits of these symbols, before padding: exact for Huffman, the ideal length for others."""

    def payload_bytes(self, model: Any, run: Run) -> int:
        """Bytes of a payload with these symbols; exact where `bits` is."""
        return (self.bits(model, run) + 7) // 8

    @abstractmethod
    def encode(self, model: Any, symbols: Symbols, segments: Sequence[Segment]) -> bytes:
        """Payload of a 1-D array of symbols that the model knows; they lie as the segments say."""

    @abstractmethod
    def decode(self, model: Any, payload: memoryview, segments: Sequence[Segment], reader: ByteReader) -> Symbols:
        """The inverse of `encode`. Errors are raised as `reader.fail` has them.

        Implementations bound the number of symbols by the payload before they allocate.
        """

    def pieces(
        self, model: Any, payload: memoryview, segments: Sequence[Segment], reader: ByteReader
    ) -> Iterator[Symbols]:
        """The symbols in pieces, for payloads so dense that they would not fit into memory at once.

        Only coders with more than some 16 symbols in a byte have to have this.
        """
        yield self.decode(model, payload, segments, reader)


CODERS: Registry[Coder] = Registry("coder")

AUTO = "auto"
"""Instead of a coder's name: whichever takes the fewest bytes, tables counted, for each group of layers anew."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A coder fitted to symbols.

    Attributes:
        coder: the coder.
        model: its model.
        table: the stored form of the model.
        payload_bytes: of all symbols, rounded up.
    """

    coder: Coder
    model: Any
    table: bytes
    payload_bytes: int

    @property
    def nbytes(self) -> int:
        """Table and payload together."""
        return len(self.table) + self.payload_bytes


def fit_coder(run: Run, name: str) -> Fit:
    """A coder by name, or for AUTO the smallest one, fitted; of equally small ones the first registered."""
    coders = list(CODERS.values()) if name == AUTO else [CODERS[name]]
    fits = []
    for coder in coders:
        model = coder.fit(run)
        fits.append(Fit(coder, model, coder.table(model), coder.payload_bytes(model, run)))
    return min(fits, key=lambda fit: fit.nbytes)


def coder_of_id(number: int, reader: ByteReader) -> tuple[str, Coder]:
    """The coder that a file names by number, and its name. Raises FormatError."""
    for name in CODERS:
        if CODERS[name].id == number:
            return name, CODERS[name]
    raise reader.fail(
        "coder-unknown",
        f"unknown coder {number}; known: {sorted(coder.id for coder in CODERS.values())}. "
        "The file may come from a newer version of ilwp-plugin.",
    )
