"""What every coder offers, and the registry of coders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError
from ilwp_plugin.registry import Registry
from ilwp_plugin.stream import ByteReader

__all__ = ["AUTO", "CODERS", "Coder", "Fit", "Histogram", "Symbols", "coder_of_id", "fit_coder"]

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
        flat = np.asarray(symbols, dtype=np.int64).ravel()
        low = int(flat.min())
        return cls(low, np.bincount(flat - low).astype(np.int64))

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


class Coder(ABC):
    """A coder with a stored model: fit it to a histogram, store its table once, code any number of symbols with it.

    `Model` below is whatever the coder needs to encode and decode; the section that holds the symbols stores the
    table, the number of symbols and the length of the payload.
    """

    id: int
    """Number in the file format; never reused."""

    @abstractmethod
    def fit(self, histogram: Histogram) -> Any:
        """The model that codes symbols of this histogram in the fewest bits."""

    @abstractmethod
    def table(self, model: Any) -> bytes:
        """The stored form of a model, self-delimiting."""

    @abstractmethod
    def read_table(self, reader: ByteReader) -> Any:
        """The inverse of `table`. Raises FormatError where no encoder could have written these bytes."""

    @abstractmethod
    def bits(self, model: Any, histogram: Histogram) -> int:
        """Payload bits of symbols of this histogram, before padding: exact for Huffman, the ideal length for ANS."""

    def payload_bytes(self, model: Any, histogram: Histogram) -> int:
        """Bytes of a payload with symbols of this histogram; exact where `bits` is."""
        return (self.bits(model, histogram) + 7) // 8

    @abstractmethod
    def encode(self, model: Any, symbols: Symbols) -> bytes:
        """Payload of a 1-D array of symbols that the model knows."""

    @abstractmethod
    def decode(self, model: Any, payload: memoryview, count: int, reader: ByteReader) -> Symbols:
        """The inverse of `encode`. Errors are raised as `reader.fail` has them.

        Implementations bound `count` by the payload before they allocate.
        """


CODERS: Registry[Coder] = Registry("coder")

AUTO = "auto"
"""Instead of a coder's name: whichever takes the fewest bytes, tables counted, for each group of layers anew."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A coder fitted to a histogram.

    Attributes:
        coder: the coder.
        model: its model.
        table: the stored form of the model.
        payload_bytes: of all symbols of the histogram, rounded up.
    """

    coder: Coder
    model: Any
    table: bytes
    payload_bytes: int

    @property
    def nbytes(self) -> int:
        """Table and payload together."""
        return len(self.table) + self.payload_bytes


def fit_coder(histogram: Histogram, name: str) -> Fit:
    """A coder by name, or for AUTO the smallest one, fitted; of equally small ones the first registered."""
    coders = list(CODERS.values()) if name == AUTO else [CODERS[name]]
    fits = []
    for coder in coders:
        model = coder.fit(histogram)
        fits.append(Fit(coder, model, coder.table(model), coder.payload_bytes(model, histogram)))
    return min(fits, key=lambda fit: fit.nbytes)


def coder_of_id(number: int) -> Coder:
    """The coder that a file names by number."""
    for coder in CODERS.values():
        if coder.id == number:
            return coder
    raise FormatError(
        f"unknown coder {number}; known: {sorted(coder.id for coder in CODERS.values())}. "
        "The file may come from a newer version of ilwp-plugin."
    )
