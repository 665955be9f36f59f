"""What every coder offers, and the registry of coders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.stream import ByteReader
from ilwp_plugin.registry import Registry

__all__ = [
    "AUTO",
    "CODERS",
    "PRIVATE",
    "WIDEST",
    "Coder",
    "Histogram",
    "Run",
    "Segment",
    "Symbols",
    "coder_of_id",
    "smallest_dtype",
]

Symbols = NDArray[np.signedinteger[Any]]
"""Whole numbers that a coder writes, of any signed dtype."""

PRIVATE = 24
"""Numbers of coders from here on are for private use."""

WIDEST = 1 << 16
"""The most symbols that the span of a table has, and the largest magnitude of the first of them."""

_CHUNK = 1 << 20
"""Symbols that are looked at at one time."""


def smallest_dtype(low: int, high: int) -> type[np.int16] | type[np.int32]:
    """The smaller one that holds both."""
    return np.int16 if -(1 << 15) <= low <= high < 1 << 15 else np.int32


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
        low, high = int(flat.min()), int(flat.max())
        counts = np.zeros(high - low + 1, np.int64)
        for start in range(0, len(flat), _CHUNK):
            counts += np.bincount(flat[start : start + _CHUNK].astype(np.int64) - low, minlength=len(counts))
        return cls(low, counts)

    @classmethod
    def total(cls, parts: Sequence[Histogram]) -> Histogram:
        """Of several together."""
        if len(parts) == 1:
            return parts[0]
        low = min(part.low for part in parts)
        counts = np.zeros(max(part.low + len(part.counts) for part in parts) - low, dtype=np.int64)
        for part in parts:
            counts[part.low - low : part.low - low + len(part.counts)] += part.counts
        return cls(low, counts)

    def __add__(self, other: Histogram) -> Histogram:
        return self.total([self, other])

    def without_low_bits(self, count: int) -> Histogram:
        """Of the same symbols without so many of their lowest bits, that is divided by a power of two, rounded down."""
        if not count:
            return self
        low = self.low >> count
        places = (np.arange(self.low, self.low + len(self.counts)) >> count) - low
        counts = np.zeros(int(places[-1]) + 1, np.int64)
        np.add.at(counts, places, self.counts)
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

    @classmethod
    def rows(cls, count: int, shape: tuple[int, ...]) -> Segment:
        """Of some symbols for each value of a tensor of this shape: a row for each slice along its first dimension."""
        return cls(count, (shape[0], count // shape[0])) if len(shape) > 1 else cls.flat(count)


class Run:
    """The symbols of consecutive layers, to be coded together.

    Args:
        symbols: gives those of each layer, or of parts of the layers, 1-D, not empty; most coders look at the histogram
            alone.
        segments: of each layer.
        histogram: of all symbols; None finds it when it is asked for.
    """

    def __init__(
        self, symbols: Callable[[], Iterable[Symbols]], segments: Sequence[Segment], histogram: Histogram | None = None
    ) -> None:
        self._symbols, self.segments, self._histogram = symbols, tuple(segments), histogram

    @classmethod
    def of(cls, symbols: Symbols, segment: Segment | None = None) -> Run:
        """A single layer."""
        return cls(lambda: [symbols], [segment or Segment.flat(len(symbols))], Histogram.of(symbols))

    @classmethod
    def join(cls, runs: Sequence[Run]) -> Run:
        """Several, one after the other."""
        if len(runs) == 1:
            return runs[0]
        return cls(
            lambda: (symbols for run in runs for symbols in run.pieces()),
            [segment for run in runs for segment in run.segments],
            Histogram.total([run.histogram for run in runs]),
        )

    def without_low_bits(self, count: int) -> Run:
        """The same symbols without so many of their lowest bits."""
        if not count:
            return self
        histogram = None if self._histogram is None else self._histogram.without_low_bits(count)
        return Run(lambda: (symbols >> count for symbols in self.pieces()), self.segments, histogram)

    @property
    def histogram(self) -> Histogram:
        """Of all symbols."""
        if self._histogram is None:
            self._histogram = Histogram.total([Histogram.of(symbols) for symbols in self.pieces()])
        return self._histogram

    @property
    def count(self) -> int:
        """Number of symbols."""
        return sum(segment.count for segment in self.segments)

    def pieces(self) -> Iterator[Symbols]:
        """All symbols, some at a time."""
        return iter(self._symbols())

    @property
    def joined(self) -> Symbols:
        """All symbols, in one array."""
        pieces = list(self.pieces())
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Coder(ABC):
    """A coder with a stored model: fit it to symbols, store its table once, code any number of symbols with it.

    `Model` below is whatever the coder needs to encode and decode; it may be adaptive and hold next to nothing. The
    section that holds the symbols stores the table, the number of symbols and the length of the payload.
    """

    id: int
    """Number in the file format, 1 to 31; never reused. Numbers from 24 on are for private use."""
    density: int
    """The most symbols that a byte of payload can hold; what claims more is refused before anything is decoded."""
    learns: bool = False
    """Whether it finds out what symbols are like as it goes from one to the next. Then all layers are one group, as far
    as is sensible; it is not tried for each group there could be, since finding out what it takes is as long as coding;
    and the bits that it tells of symbols are in proportion only."""

    def bound(self, payload: memoryview, count: int, reader: ByteReader) -> None:
        """Raises FormatError where a payload cannot hold so many symbols.

        Args:
            payload: its bytes.
            count: symbols that it is said to hold.
            reader: that tells the place of a fault.
        """
        if count > self.density * len(payload):
            raise reader.fail("payload", f"{count} symbols cannot fit in {len(payload)} bytes")

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
    def bits(self, model: Any, histogram: Histogram) -> int:
        """Payload bits of symbols of this histogram, before padding: exact for Huffman, else the ideal length."""

    def layer_bits(self, model: Any, payload: memoryview, layers: Sequence[Run]) -> list[int]:
        """The bits of each layer in a payload; its bytes are shared among the layers in these proportions.

        Args:
            model: as `fit` or `read_table` gave it.
            payload: as `encode` gave it; from a file, but known to be good.
            layers: of each the symbols; their histograms are found when they are asked for.
        """
        return [self.bits(model, layer.histogram) for layer in layers]

    def payload_bytes(self, model: Any, run: Run) -> int:
        """Bytes of a payload with these symbols; exact where `bits` is. An adaptive coder has to find out."""
        return (self.bits(model, run.histogram) + 7) // 8

    @abstractmethod
    def encode(self, model: Any, symbols: Symbols, segments: Sequence[Segment]) -> bytes:
        """Payload of a 1-D array of symbols that the model knows; they lie as the segments say."""

    @abstractmethod
    def decode(self, model: Any, payload: memoryview, segments: Sequence[Segment], reader: ByteReader) -> Symbols:
        """The inverse of `encode`: 1-D, in the smallest of int16 and int32 that the model needs.

        Args:
            model: as `read_table` gave it.
            payload: as `encode` gave it; from a file, so anything.
            segments: the same as in `encode`.
            reader: whose `fail` makes the errors; implementations `bound` the number of symbols first.
        """

    def pieces(
        self, model: Any, payload: memoryview, segments: Sequence[Segment], reader: ByteReader
    ) -> Iterator[Symbols]:
        """The symbols in pieces, for payloads so dense that they would not fit into memory at once.

        Only coders of a density of more than 8 have to have this.

        Args:
            model, payload, segments, reader: see `decode`.
        """
        yield self.decode(model, payload, segments, reader)


CODERS: Registry[Coder] = Registry("coder")
"""Entropy coders by the name that a configuration gives them."""

AUTO = "auto"
"""Instead of a coder's name: whichever takes the fewest bytes, tables counted, for each group of layers anew."""


def coder_of_id(number: int, reader: ByteReader) -> Coder:
    """The coder that a file names by number. Raises FormatError."""
    coder = CODERS.find(lambda coder: coder.id == number)
    if coder is not None:
        return coder
    raise reader.fail(
        "coder-unknown",
        f"unknown coder {number}; known: {sorted(coder.id for coder in CODERS.values())}. "
        "The file may come from a newer version of ilwp-plugin.",
    )
