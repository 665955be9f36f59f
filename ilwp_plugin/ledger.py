"""The one ledger of bytes: every size in every report is read from here.

The byte writer and the byte reader (`format/stream.py`) fill it as they go, so that each byte of a file is charged
once, to one part and one layer, and the sum is the size on disk. Which parts there are is said by those who charge
them: a section of a file registers its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ilwp_plugin.errors import RegistryError

__all__ = ["Account", "LayerBytes", "Ledger", "PARTS", "Part", "register_part", "split_bits"]

Account = tuple[str, str | None]
"""The part and the layer that bytes are charged to."""


@dataclass(frozen=True)
class Part:
    """What bytes of a file are for.

    Attributes:
        name: the sizes are called `<name>_bytes`.
        description: in a sentence.
        predicted: whether the bytes belong to layers that predict each other, so that `total_bytes` counts them.
    """

    name: str
    description: str
    predicted: bool = False


PARTS: dict[str, Part] = {}
"""By name, in the order in which reports show them."""


def register_part(name: str, description: str, *, predicted: bool = False) -> str:
    """Make a part known; returns its name. Registering the same part twice is no error.

    Args:
        name: in reports.
        description: what is counted, in words.
        predicted: whether it belongs to the layers that prediction is about, and so to `total_bytes`.

    Raises:
        RegistryError: another part has this name.
    """
    part = Part(name, description, predicted)
    if PARTS.setdefault(name, part) != part:
        raise RegistryError(f"part {name!r} is registered already, as {PARTS[name]!r}")
    return name


register_part(
    "header",
    "Names, shapes, steps, lengths and checksums that layers of chains need, and the frame of the file.",
    predicted=True,
)
register_part("other", "Everything else: tensors that are not compressed, with their names and shapes, and metadata.")


class LayerBytes:
    """Bytes by part, of one layer or of a whole file: `<part>_bytes` for every part of `PARTS`.

    >>> LayerBytes(header_bytes=3, other_bytes=1).file_bytes
    4
    """

    def __init__(self, **sizes: int) -> None:
        self._parts = {name.removesuffix("_bytes"): count for name, count in sizes.items() if count}

    def __getattr__(self, name: str) -> int:
        part = name.removesuffix("_bytes")
        if part == name or part not in PARTS:  # also `_parts`, while it is being copied
            raise AttributeError(f"no size is called {name!r}")
        return self._parts.get(part, 0)

    @property
    def total_bytes(self) -> int:
        """All that layers which predict each other need: the parts that say so."""
        return sum(count for part, count in self._parts.items() if PARTS[part].predicted)

    @property
    def file_bytes(self) -> int:
        """The sum of all parts."""
        return sum(self._parts.values())

    def to_dict(self) -> dict[str, int]:
        """The parts, `total_bytes` and `file_bytes`, by name."""
        parts = {f"{part}_bytes": self._parts.get(part, 0) for part in PARTS}
        return {**parts, "total_bytes": self.total_bytes, "file_bytes": self.file_bytes}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerBytes) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._parts.items())))

    def __repr__(self) -> str:
        return f"LayerBytes({', '.join(f'{part}_bytes={count}' for part, count in self._parts.items())})"


class Ledger:
    """Bytes of a file by part and layer.

    `<part>_bytes`, `total_bytes` and `file_bytes` are those of the whole file; `layers` holds the same for each layer.
    """

    def __init__(self) -> None:
        self._charged: dict[Account, int] = defaultdict(int)
        self._deferred: list[Callable[[], Iterable[tuple[str, str | None, int]]]] = []

    @property
    def _bytes(self) -> dict[Account, int]:
        while self._deferred:
            for part, layer, count in self._deferred.pop(0)():
                self.charge(part, layer, count)
        return self._charged

    def charge(self, part: str, layer: str | None, count: int) -> None:
        """Add `count` bytes to a part of a layer; the layer None is the file itself."""
        if count:
            self._charged[part, layer] += count

    def defer(self, charges: Callable[[], Iterable[tuple[str, str | None, int]]]) -> None:
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

    @staticmethod
    def _sum(keep: Iterable[tuple[Account, int]]) -> LayerBytes:
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
        grouped: dict[str, list[tuple[Account, int]]] = {}
        for (part, layer), count in self._bytes.items():
            if layer is not None:
                grouped.setdefault(layer, []).append(((part, layer), count))
        return {layer: self._sum(lines) for layer, lines in grouped.items()}

    def __getattr__(self, name: str) -> int:
        if name.startswith("_"):  # also while it is being unpickled or copied
            raise AttributeError(name)
        return int(getattr(self.whole, name))

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
