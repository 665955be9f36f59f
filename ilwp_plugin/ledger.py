"""The one ledger of bytes: every size in every report is read from here.

The byte writer and the byte reader (`stream.py`) fill it as they go, so that each byte of a file is charged once, to
one part and one layer, and the sum is the size on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["Ledger", "LayerBytes", "Part", "PARTS", "split_bits"]

Part = Literal["texture", "non_texture", "table", "anchor", "header", "grid", "batch_norm", "other"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class LayerBytes:
    """Bytes by part, of one layer or of a whole file."""

    texture_bytes: int = 0
    """Entropy-coded quantized residuals."""
    non_texture_bytes: int = 0
    """Stored reference indices, with their code tables."""
    table_bytes: int = 0
    """Code tables of the residuals. A table shared by several layers is charged to the first of them."""
    anchor_bytes: int = 0
    """Kernels of anchor layers, however they are stored."""
    header_bytes: int = 0
    """Names, shapes, steps, lengths and checksums that the compressed layers need."""
    grid_bytes: int = 0
    """Layers that are in no chain but stored as codes on a grid: codes, code tables and scales."""
    batch_norm_bytes: int = 0
    """Batch norms that are stored as one scale and one shift a channel."""
    other_bytes: int = 0
    """Everything else: tensors that are not compressed, with their names and shapes, and metadata."""

    @property
    def total_bytes(self) -> int:
        """All that the layers of chains need: every part but `grid_bytes`, `batch_norm_bytes` and `other_bytes`."""
        return self.file_bytes - self.grid_bytes - self.batch_norm_bytes - self.other_bytes

    @property
    def file_bytes(self) -> int:
        """The sum of all parts."""
        return sum(int(getattr(self, f"{part}_bytes")) for part in PARTS)

    def to_dict(self) -> dict[str, int]:
        """The parts, `total_bytes` and `file_bytes`, by name."""
        parts = {f"{part}_bytes": int(getattr(self, f"{part}_bytes")) for part in PARTS}
        return {**parts, "total_bytes": self.total_bytes, "file_bytes": self.file_bytes}


class Ledger:
    """Bytes of a file by part and layer.

    `texture_bytes`, `non_texture_bytes`, `table_bytes`, `anchor_bytes`, `header_bytes`, `grid_bytes`,
    `batch_norm_bytes`, `other_bytes`, `total_bytes` and `file_bytes`
    are those of the whole file; `layers` holds the same for each layer.
    """

    def __init__(self) -> None:
        self._charged: dict[tuple[Part, str | None], int] = defaultdict(int)
        self._deferred: list[Callable[[], Iterable[tuple[Part, str | None, int]]]] = []

    @property
    def _bytes(self) -> dict[tuple[Part, str | None], int]:
        while self._deferred:
            for part, layer, count in self._deferred.pop(0)():
                self.charge(part, layer, count)
        return self._charged

    def charge(self, part: Part, layer: str | None, count: int) -> None:
        """Add `count` bytes to a part of a layer; the layer None is the file itself."""
        if count:
            self._charged[part, layer] += count

    def defer(self, charges: Callable[[], Iterable[tuple[Part, str | None, int]]]) -> None:
        """Charges that take time to find, by part, layer and bytes: they are found when the ledger is looked at."""
        self._deferred.append(charges)

    def extend(self, other: Ledger) -> None:
        """Add all entries of another ledger."""
        for (part, layer), count in other._charged.items():
            self.charge(part, layer, count)
        self._deferred += other._deferred

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and dict(self._bytes) == dict(other._bytes)

    __hash__ = None  # type: ignore[assignment]  # it grows while a file is written

    def _sum(self, keep: Iterable[tuple[tuple[Part, str | None], int]]) -> LayerBytes:
        parts: dict[str, int] = defaultdict(int)
        for (part, _), count in keep:
            parts[f"{part}_bytes"] += count
        return LayerBytes(**parts)

    @property
    def whole(self) -> LayerBytes:
        """The bytes of the whole file."""
        return self._sum(self._bytes.items())

    @property
    def layers(self) -> dict[str, LayerBytes]:
        """The bytes of each layer or tensor, by name, in the order of the file."""
        grouped: dict[str, list[tuple[tuple[Part, str | None], int]]] = {}
        for (part, layer), count in self._bytes.items():
            if layer is not None:
                grouped.setdefault(layer, []).append(((part, layer), count))
        return {layer: self._sum(lines) for layer, lines in grouped.items()}

    @property
    def texture_bytes(self) -> int:
        return self.whole.texture_bytes

    @property
    def non_texture_bytes(self) -> int:
        return self.whole.non_texture_bytes

    @property
    def table_bytes(self) -> int:
        return self.whole.table_bytes

    @property
    def anchor_bytes(self) -> int:
        return self.whole.anchor_bytes

    @property
    def header_bytes(self) -> int:
        return self.whole.header_bytes

    @property
    def grid_bytes(self) -> int:
        return self.whole.grid_bytes

    @property
    def batch_norm_bytes(self) -> int:
        return self.whole.batch_norm_bytes

    @property
    def other_bytes(self) -> int:
        return self.whole.other_bytes

    @property
    def total_bytes(self) -> int:
        return self.whole.total_bytes

    @property
    def file_bytes(self) -> int:
        return self.whole.file_bytes

    def to_dict(self) -> dict[str, Any]:
        """The whole file's parts, and `layers` with the same names for each layer."""
        layers: Mapping[str, LayerBytes] = self.layers
        return {**self.whole.to_dict(), "layers": {name: b.to_dict() for name, b in layers.items()}}

    def __repr__(self) -> str:
        return f"Ledger({self.whole})"


def split_bits(bits: Sequence[int], total_bytes: int) -> list[int]:
    """Share the whole bytes of one bitstream between consecutive segments of it.

    Each segment gets the bytes whose last bit lies in it or, for the last one, the rest; the shares sum to
    `total_bytes` exactly.

    Args:
        bits: length of each segment, in bits.
        total_bytes: length of the stream, in bytes.
    """
    shares, position, given = [], 0, 0
    for length in bits:
        position += length
        upto = min(position // 8, total_bytes)
        shares.append(upto - given)
        given = upto
    if shares:
        shares[-1] += total_bytes - given
    return shares
