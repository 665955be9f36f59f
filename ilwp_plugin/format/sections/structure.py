"""The structure section: which channels of the original network a pruned one has left."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.coding import read_indices, write_indices
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.origins import Origin, Provenance
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section
from ilwp_plugin.format.stream import Account, ByteReader, ByteWriter

__all__ = ["StructureSection"]

_ASCENDING, _ANY_ORDER = 0, 1
_MAX_CHANNELS = 1 << 31
_SUFFIX = ".weight"


@SECTIONS.register("structure")
class StructureSection(Section):
    """The origins of the channels of pruned layers.

    Attributes:
        provenance: by name of the weight, or of its layer.
    """

    number = 6
    name = "structure"
    single = True

    def __init__(self, provenance: Provenance) -> None:
        self.provenance: Mapping[str, Origin] = dict(provenance)

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        """Layers with the same survivors share one entry. Layers that lost nothing need none.

        Raises:
            TensorError: a layer has no weight in the directory, another number of channels, or two origins.
        """
        position = {info.name: i for i, info in enumerate(directory)}
        groups: dict[tuple[int, bytes], tuple[Origin, list[int]]] = {}
        seen: dict[int, str] = {}
        for name, origin in self.provenance.items():
            key = name if name.endswith(_SUFFIX) else name + _SUFFIX
            if key not in position:
                raise TensorError(f"provenance: no tensor {key!r} in the model")
            number = position[key]
            if directory[number].storage == "alias":
                number = directory[number].alias_of
            shape = directory[number].shape
            if not shape or shape[0] != len(origin.survivors):
                raise TensorError(f"provenance: {key!r} of shape {shape} has not {len(origin.survivors)} channels")
            if origin.is_whole:
                continue
            group = groups.setdefault((origin.channels, origin.survivors.tobytes()), (origin, []))
            if number in seen and number not in group[1]:
                raise TensorError(f"provenance: {seen[number]!r} and {key!r} are one tensor, with two origins")
            if number not in seen:
                group[1].append(number)
            seen[number] = key
        with writer.charge(self.part, None):
            writer.varint(len(groups))
        for origin, numbers in sorted(groups.values(), key=lambda group: min(group[1])):
            numbers.sort()
            with writer.charge(*_account(directory, numbers)):
                _write_group(writer, origin, numbers)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> StructureSection:
        directory = context.directory
        provenance: dict[str, Origin] = {}
        with reader.charge(cls.part, None):
            count = reader.varint()
        for _ in range(count):  # each takes bytes, so that the count needs no bound
            with reader.charge_later() as entry:
                numbers = _read_numbers(reader, directory)
                origin = _read_origin(reader, directory[numbers[0]])
                entry.account = _account(directory, numbers)
            for number in numbers:
                info = directory[number]
                if info.name in provenance:
                    raise reader.fail("origin", f"{info.name}: a second origin")
                if len(info.shape) == 0 or info.shape[0] != len(origin.survivors):
                    raise reader.fail(
                        "origin", f"{info.name}: {len(origin.survivors)} survivors for shape {info.shape}"
                    )
                provenance[info.name] = origin
        reader.finish()
        return cls(provenance)


def _account(directory: Sequence[TensorInfo], numbers: Sequence[int]) -> Account:
    """The references of a compressed layer come from here; of others nothing does."""
    coded = [directory[number].name for number in numbers if directory[number].storage == "coded"]
    return ("non_texture", coded[0]) if coded else ("other", None)


def _write_group(writer: ByteWriter, origin: Origin, numbers: Sequence[int]) -> None:
    writer.varint(len(numbers))
    for number in numbers:
        writer.varint(number)
    writer.varint(origin.channels)
    survivors = origin.survivors
    if bool((np.diff(survivors) > 0).all()):
        writer.u8(_ASCENDING)
        kept = np.zeros(origin.channels, dtype=np.uint8)
        kept[survivors] = 1
        writer.raw(np.packbits(kept).tobytes())
    else:
        writer.u8(_ANY_ORDER)
        write_indices(writer, survivors, origin.channels)


def _read_numbers(reader: ByteReader, directory: Sequence[TensorInfo]) -> list[int]:
    count = reader.varint()
    if not 1 <= count <= len(directory):
        raise reader.fail("count", f"an origin of {count} tensors, the file has {len(directory)}")
    numbers = [reader.varint() for _ in range(count)]
    if any(b <= a for a, b in itertools.pairwise(numbers)) or numbers[-1] >= len(directory):
        raise reader.fail(
            "position",
            f"an origin of the tensors {numbers[:9]}, expected ascending numbers below {len(directory)}",
        )
    for number in numbers:
        if directory[number].storage == "alias" or not directory[number].name.endswith(_SUFFIX):
            raise reader.fail(
                "unfit", f"{directory[number].name}: the origin of a tensor that is an alias or no weight"
            )
    return numbers


def _read_origin(reader: ByteReader, first: TensorInfo) -> Origin:
    channels, order = reader.varint(), reader.u8()
    kernels = first.shape[0] if first.shape else 0
    if not 1 <= kernels <= channels <= _MAX_CHANNELS:
        raise reader.fail("origin", f"{first.name}: {kernels} survivors of {channels} channels")
    if order == _ASCENDING:
        bits = np.unpackbits(np.frombuffer(reader.raw((channels + 7) // 8), dtype=np.uint8))
        if bits[channels:].any():
            raise reader.fail("padding", f"{first.name}: the padding of its survivors is not zero")
        survivors = np.flatnonzero(bits[:channels])
    elif order == _ANY_ORDER:
        # An index takes at least a bit, so the shape is bounded by the section before anything is allocated for it.
        if kernels > 8 * reader.remaining:
            raise reader.fail("too-short", f"{first.name}: {kernels} survivors in {reader.remaining} bytes")
        survivors = read_indices(reader, kernels, channels)
    else:
        raise reader.fail("form", f"unknown order {order} of survivors")
    distinct = len(np.unique(survivors))
    if distinct != kernels or len(survivors) != kernels:
        raise reader.fail("origin", f"{first.name}: {distinct} distinct survivors for {kernels} channels")
    return Origin(survivors.astype(np.int64), channels)
