"""The coder and the number of low bits that store symbols in the fewest bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.format.coding.base import AUTO, CODERS, PRIVATE, WIDEST, Coder, Histogram, Run

__all__ = ["LOW_BITS", "Fit", "best_low_bits", "estimated_bytes", "fit_coder"]

LOW_BITS = range(8)
"""So many of the lowest bits of a symbol may be stored as they are, where they are all but random: tables get short."""

_TRIED = 4
"""Spans shorter than this are not cut further."""

_STEP_BITS = np.array([2 * (step + 1).bit_length() for step in range(128)], np.uint8)
"""Of a difference of two levels in an ANS table, about."""

_FIXED = 9
"""Bytes of a group that do not depend on its symbols: its head, the range of its table, the final state."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A coder fitted to symbols.

    Attributes:
        coder: the coder.
        model: its model.
        table: the stored form of the model.
        low_bits: so many bits of each symbol are stored as they are.
        payload_bytes: of all symbols, low bits included, rounded up.
    """

    coder: Coder
    model: Any
    table: bytes
    low_bits: int
    payload_bytes: int

    @property
    def nbytes(self) -> int:
        """Table and payload together."""
        return len(self.table) + self.payload_bytes

    def layer_bits(self, payload: memoryview, layers: Sequence[Run]) -> list[int]:
        """Of each layer, low bits included; the payload is without them."""
        bits = self.coder.layer_bits(self.model, payload, [layer.without_low_bits(self.low_bits) for layer in layers])
        return [own + self.low_bits * layer.count for own, layer in zip(bits, layers, strict=True)]


def fit_coder(run: Run, name: str, low_bits: int | None = None) -> Fit:
    """A coder by name, with no more low bits than it needs; or for AUTO what is smallest.

    Of equally small ones it is the first that was registered.

    Args:
        run: the symbols to be coded.
        name: of a coder, or AUTO.
        low_bits: that are stored as they are, beside what is coded; None chooses.
    """
    # A file of others' coders has to be asked for, and so have coders that take long.
    own = [coder for coder in CODERS.values() if coder.id < PRIVATE and not coder.learns]
    coders = own if name == AUTO else [CODERS[name]]
    if low_bits is None:
        low_bits = best_low_bits(run.histogram) if name == AUTO else _needed_low_bits(run.histogram)
    rest = run.without_low_bits(low_bits)
    extra = (low_bits * int(run.histogram.counts.sum()) + 7) // 8
    fits = []
    for coder in coders:
        model = coder.fit(rest)
        payload = coder.payload_bytes(model, rest) + extra
        fits.append(Fit(coder, model, coder.table(model), low_bits, payload))
    return min(fits, key=lambda fit: fit.nbytes)


def _needed_low_bits(histogram: Histogram) -> int:
    """So few that a table can hold what is left of the symbols."""
    low, high = histogram.low, histogram.low + len(histogram.counts) - 1
    return next(k for k in LOW_BITS if abs(low >> k) <= WIDEST and (high >> k) - (low >> k) < WIDEST)


def best_low_bits(histogram: Histogram) -> int:
    """So many that a group of these symbols takes the fewest bytes, as far as that can be told without coding them."""
    needed = _needed_low_bits(histogram)
    if len(histogram.counts) < 2 * _TRIED:
        return needed
    first = histogram.low % (1 << LOW_BITS[-1])  # so that halves are those of the symbols themselves
    counts = np.concatenate([np.zeros(first, np.float32), histogram.counts.astype(np.float32)])[None]
    return max(needed, int(_estimates_by_low_bits(counts, np.array([counts.shape[1]]), first)[:, 0].argmin()))


def estimated_bytes(histograms: Sequence[Histogram]) -> NDArray[np.float64]:
    """About the bytes of a group with each histogram, (n,); all are looked at together."""
    span = max(len(histogram.counts) for histogram in histograms)
    counts = np.zeros((len(histograms), span), np.float32)
    for row, histogram in zip(counts, histograms, strict=True):
        row[: len(histogram.counts)] = histogram.counts
    spans = np.array([len(histogram.counts) for histogram in histograms])
    best: NDArray[np.float64] = _estimates_by_low_bits(counts, spans).min(axis=0) + _FIXED
    return best


def _estimates_by_low_bits(
    counts: NDArray[np.float32], spans: NDArray[np.int64], first: int = 0
) -> NDArray[np.float64]:
    """Bytes that depend on the symbols: their entropy, and what an ANS table takes.

    The weights of the table are taken as powers of the square root of 2.

    Args:
        counts: (n, span).
        spans: (n,) where each histogram ends.
        first: where all begin.

    Returns:
        (low bits, n).
    """
    total = counts.sum(axis=1, dtype=np.float64)
    found = []
    for low_bits in LOW_BITS:
        logs = np.log2(np.maximum(counts, 1))
        payload = total * (low_bits + np.log2(total)) - (counts * logs).sum(axis=1, dtype=np.float64)
        levels = np.where(counts > 0, 1 + np.rint(2 * logs), 0).astype(np.int8)
        steps = np.abs(np.diff(levels, axis=1, prepend=np.int8(0)))
        places = np.arange(counts.shape[1])
        within = (places >= first) & (places < spans[:, None])
        table = (_STEP_BITS[steps] * within).sum(axis=1, dtype=np.int64)
        found.append((payload + table) / 8)
        if counts.shape[1] < 2 * _TRIED:
            break
        if counts.shape[1] % 2:
            counts = np.pad(counts, ((0, 0), (0, 1)))
        counts, spans, first = counts.reshape(len(counts), -1, 2).sum(axis=2), (spans + 1) // 2, first // 2
    return np.array(found)
