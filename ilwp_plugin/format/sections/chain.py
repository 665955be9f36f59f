"""The chain section: the anchor, the residual codes, steps and references of one chain."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError, TensorError
from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.coding import Histogram, Run, Segment, read_indices, write_indices
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import DTYPES, cast, is_finite, is_real, to_float32
from ilwp_plugin.format.kernels import (
    BITS,
    KernelPool,
    QuantizedLayer,
    collocated_references,
    largest_code,
)
from ilwp_plugin.format.origins import Lineage, Provenance, chain_origins
from ilwp_plugin.format.sections.base import SECTIONS, Context, Stored, Summary, TensorSection, read_info
from ilwp_plugin.format.sections.codes import Coding, StoredCodes, write_codes
from ilwp_plugin.format.sections.maps import count_ones, read_map, write_map
from ilwp_plugin.format.sections.structure import StructureSection
from ilwp_plugin.format.stream import Account, ByteReader, ByteWriter
from ilwp_plugin.ledger import register_part

__all__ = ["ANCHOR_DTYPES", "ChainSection", "CodedLayer", "Mode", "storage_mode"]

Mode = Literal["none", "collocated", "local", "full", "ancestral"]
_MODES: tuple[Mode, ...] = ("none", "collocated", "local", "full", "ancestral")
"""How a layer's references are stored; the position is the number in the file."""

_ZERO_MAP = 0x80
"""In the byte of mode and bits: a map tells which weights are exactly 0."""

ANCHOR_DTYPES: tuple[str | None, ...] = (None, "float32", "float16", "bfloat16")
"""How the anchor is stored; None: quantized like the other layers."""

_TEXTURE = register_part("texture", "Entropy-coded quantized residuals.", predicted=True)
_REFERENCES = register_part("non_texture", "Stored reference indices, with their code tables.", predicted=True)
_TABLE = register_part(
    "table",
    "Code tables of the residuals. A table shared by several layers is charged to the first of them.",
    predicted=True,
)
_ANCHOR = register_part("anchor", "Kernels of anchor layers, however they are stored.", predicted=True)

_Head = tuple[Mode, int, float, bool]
"""Of a quantized layer: mode, bits, step, whether it has a map of zeros."""

_Map = tuple[NDArray[np.uint8], int]
"""A map of zeros, eight in a byte, and how many there are."""

_References = Callable[[], NDArray[np.int64]]
"""Gives the references of a layer; only what cannot be computed is held."""

_LAYER_BYTES = 2048
"""Memory that a layer takes however small it is, about."""

_WEIGHT_BYTES, _KERNEL_BYTES = 4, 16
"""The same of a weight and of a kernel, while a layer is restored."""

_REFERENCE_BYTES = 48
"""The same of a reference that is stored, while it is read."""

_ANCESTOR_BYTES = 64
"""The same of a kernel of a pruned chain."""


@dataclass(frozen=True, eq=False)
class CodedLayer:
    """A layer of the chain.

    Attributes:
        info: its tensor in the directory.
        quantized: codes, step and references; None for an anchor that is not quantized.
        mode: how its references are stored, which may be cheaper than the mode that chose them.
    """

    info: TensorInfo
    quantized: QuantizedLayer | None
    mode: Mode

    @property
    def kernels(self) -> int:
        """How many."""
        return self.info.shape[0] * self.info.shape[1]


def storage_mode(
    references: NDArray[np.int64], earlier: Sequence[int], ancestral: NDArray[np.int64] | None = None
) -> Mode:
    """The cheapest way to store references.

    Args:
        references: (kernels,) kernel numbers in the chain, or -1.
        earlier: number of kernels of each earlier layer.
        ancestral: those that follow from the provenance which is stored along.
    """
    if bool((references < 0).all()):
        return "none"
    if np.array_equal(references, collocated_references(len(references), earlier)):
        return "collocated"
    if ancestral is not None and np.array_equal(references, ancestral):
        return "ancestral"
    return "local" if bool((references >= sum(earlier[:-1])).all()) else "full"


@SECTIONS.register("chain")
class ChainSection(TensorSection):
    """One chain, quantized.

    Attributes:
        kernel_size: as the file has it: the width, and before it the product of all other sizes.
        anchor: (kernels, taps), carried in `anchor_dtype`; None where the first layer is quantized too.
        anchor_dtype: one of ANCHOR_DTYPES.
        layers: all layers in order, the anchor first.
        coding: how the residuals are coded; see `sections.codes`.
    """

    number = 2
    name = "chain"
    checked_by_restoring = True
    part = "header"

    def __init__(
        self,
        kernel_size: Sequence[int],
        anchor: NDArray[Any] | None,
        anchor_dtype: str | None,
        layers: Sequence[CodedLayer],
        coding: Coding,
    ) -> None:
        self.kernel_size = _folded(kernel_size)
        self.anchor = anchor
        self.anchor_dtype = anchor_dtype
        self.layers: Sequence[CodedLayer] = layers
        self.infos = tuple(layer.info for layer in layers)
        self.coding = coding
        self._where = self.name

    @property
    def taps(self) -> int:
        """Weights of a kernel."""
        return self.kernel_size[0] * self.kernel_size[1]

    @cached_property
    def _pool(self) -> KernelPool:
        return KernelPool(sum(info.numel for info in self.infos) // self.taps, self.taps)

    def kernels(self, number: int) -> NDArray[np.float32]:
        """(kernels, taps) of a layer, reconstructed, and with it all before it; not to be changed."""
        while len(self._pool.layers) <= number:
            layer = self.layers[len(self._pool.layers)]
            if layer.quantized is not None:
                self._pool.append(layer.quantized)
            else:
                assert self.anchor is not None and self.anchor_dtype is not None
                self._pool.append(to_float32(self.anchor, self.anchor_dtype))
        return self._pool.layers[number]

    def restore(self, name: str) -> NDArray[Any]:
        number = self._positions[name]
        info = self.infos[number]
        restored = cast(self.kernels(number), info.dtype).reshape(info.shape)
        if not is_finite(restored, info.dtype):
            raise FormatError(f"{self._where}: {name}: restores to values that are not finite", "not-finite")
        return restored.copy() if info.dtype == "float32" else restored

    def check(self) -> None:
        for _ in self.restore_all():
            pass

    def summaries(self) -> list[Summary]:
        found = []
        for layer in self.layers:
            details: dict[str, Any] = {"kernel_size": layer.info.shape[2:], "kernels": layer.kernels}
            if layer.quantized is None:
                details |= {"mode": "anchor", "dtype": self.anchor_dtype}
            else:
                codes, zeros = layer.quantized.codes, layer.quantized.zeros
                details |= {
                    "mode": layer.mode,
                    "bits": layer.quantized.bits,
                    "step": layer.quantized.step,
                    "zeros": float((codes == 0).mean()),
                    "entropy": Histogram.of(codes if zeros is None else codes[~zeros]).entropy,
                }
            found.append(Summary(layer.info.name, self.name, layer.info.shape, details))
        return found

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        position = {info.name: i for i, info in enumerate(directory)}
        writer.varint(self.kernel_size[0])
        writer.varint(self.kernel_size[1])
        writer.u8(ANCHOR_DTYPES.index(self.anchor_dtype))
        writer.varint(len(self.layers))
        for layer in self.layers:
            with writer.charge("header", layer.info.name):
                writer.varint(position[layer.info.name])
                if layer.quantized is not None:
                    mapped = 0 if layer.quantized.zeros is None else _ZERO_MAP
                    writer.u8(mapped | _MODES.index(layer.mode) << 4 | layer.quantized.bits)
                    writer.f32(layer.quantized.step)
        if self.anchor is not None and self.anchor_dtype is not None:
            with writer.charge(_ANCHOR, self.layers[0].info.name):
                writer.raw(np.ascontiguousarray(self.anchor, DTYPES[self.anchor_dtype].carrier).tobytes())
        coded = [(layer, layer.quantized) for layer in self.layers if layer.quantized is not None]
        accounts = _accounts([layer.info for layer, _ in coded], self.infos[0])
        for account, (_, quantized) in zip(accounts, coded, strict=True):
            if quantized.zeros is not None:
                with writer.charge(*account):
                    write_map(writer, quantized.zeros)
        write_codes(writer, accounts, [_run(quantized) for _, quantized in coded], self.coding, _TABLE)
        counts = np.array([layer.kernels for layer in self.layers], np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        for number, (layer, quantized) in enumerate(coded, start=len(self.layers) - len(coded)):
            with writer.charge(_REFERENCES, layer.info.name):
                _write_references(writer, layer.mode, quantized.references, number, counts, starts)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> ChainSection:
        directory = context.directory
        size = (reader.varint(), reader.varint())
        anchor_number = reader.u8()
        if anchor_number >= len(ANCHOR_DTYPES):
            raise reader.fail("form", f"unknown storage {anchor_number} of the anchor")
        anchor_dtype = ANCHOR_DTYPES[anchor_number]
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail("count", f"a chain of {count} layers, the file has {len(directory)} tensors")
        heads: list[tuple[TensorInfo, _Head | None]] = []
        for number in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory, size)
                entry.account = ("header", info.name)
                coded = number > 0 or anchor_dtype is None
                heads.append((info, _read_head(reader, info, number == 0) if coded else None))
        taps = size[0] * size[1]
        first = heads[0][0]
        context.budget.hold(_LAYER_BYTES * count, "a chain of so many layers")
        anchor = None
        if anchor_dtype is not None:
            carrier = DTYPES[anchor_dtype].carrier
            with reader.charge(_ANCHOR, first.name):
                piece = reader.raw(first.numel * carrier.itemsize)
            anchor = np.frombuffer(piece, carrier).reshape(-1, taps)
            if not is_finite(anchor, anchor_dtype):
                raise reader.fail("not-finite", f"{first.name}: the anchor holds values that are not finite")
        todo = [(info, head) for info, head in heads if head is not None]
        accounts = _accounts([info for info, _ in todo], first)
        maps = []
        for (info, (_, _, _, mapped)), account in zip(todo, accounts, strict=True):
            with reader.charge(*account):
                maps.append(_read_map(reader, info, context.budget) if mapped else None)
        segments = [
            Segment(info.numel, (info.numel // taps, taps)) if zeros is None else Segment.flat(info.numel - zeros[1])
            for (info, _), zeros in zip(todo, maps, strict=True)
        ]
        codes = StoredCodes(reader, accounts, segments, _TABLE, context.budget)
        context.budget.hold(4 * sum(info.numel for info, _ in heads), "a chain of so many weights")
        largest = max(info.numel for info, _ in heads)
        context.budget.borrow(_WEIGHT_BYTES * largest + _KERNEL_BYTES * (largest // taps), "a layer of a chain")
        ancestral = _ancestral(reader, heads, context.find(StructureSection), context.budget)
        counts = np.array([info.numel // taps for info, _ in heads], np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        references: list[_References] = []
        for number, (info, head) in enumerate(heads):
            if head is not None:
                if head[0] in ("local", "full"):
                    context.budget.hold(_REFERENCE_BYTES * int(counts[number]), "references of so many kernels")
                with reader.charge(_REFERENCES, info.name):
                    if head[0] == "ancestral":
                        references.append(ancestral[number])
                    else:
                        references.append(_read_references(reader, head[0], number, counts, starts))
        reader.finish()
        section = cls.__new__(cls)
        section.kernel_size, section.anchor, section.anchor_dtype = size, anchor, anchor_dtype
        section.infos, section.coding, section._where = tuple(info for info, _ in heads), codes.coding, reader.where
        section.layers = _StoredLayers(heads, taps, codes, references, maps, reader.where)
        return section


class _StoredLayers(Stored[CodedLayer]):
    """The layers of a chain as they stand in a file; each is decoded when it is asked for."""

    def __init__(
        self,
        heads: Sequence[tuple[TensorInfo, _Head | None]],
        taps: int,
        codes: StoredCodes,
        references: Sequence[_References],
        maps: Sequence[_Map | None],
        where: str,
    ) -> None:
        super().__init__(len(heads))
        self._heads, self._taps, self._codes = heads, taps, codes
        self._references, self._maps, self._where = references, maps, where
        self._first = int(heads[0][1] is None)

    def _decoded(self, number: int) -> CodedLayer:
        info, head = self._heads[number]
        if head is None:
            return CodedLayer(info, None, "none")
        mode, bits, step, _ = head
        at = number - self._first
        codes = self._codes.layer(at)
        largest = max(-int(codes.min()), int(codes.max()))
        if largest > (largest_code(bits) if step > 0 else 0):
            raise FormatError(
                f"{self._where}: {info.name}: a code of magnitude {largest} at {bits} bits, step {step}", "code"
            )
        values, zeros = codes.astype(np.int16, copy=False), None
        if (packed := self._maps[at]) is not None:
            zeros = np.unpackbits(packed[0], count=info.numel).astype(bool).reshape(-1, self._taps)
            values = np.zeros(info.numel, np.int16)
            values[~zeros.ravel()] = codes
        quantized = QuantizedLayer(values.reshape(-1, self._taps), step, bits, self._references[at](), zeros)
        return CodedLayer(info, quantized, mode)


def _accounts(infos: Sequence[TensorInfo], first: TensorInfo) -> list[Account]:
    return [(_ANCHOR if info is first else _TEXTURE, info.name) for info in infos]


def _run(layer: QuantizedLayer) -> Run:
    if layer.zeros is not None:
        return Run.of(layer.codes[~layer.zeros])
    return Run.of(layer.codes.ravel(), Segment(layer.codes.size, layer.codes.shape))


def _write_references(
    writer: ByteWriter,
    mode: Mode,
    references: NDArray[np.int64],
    number: int,
    counts: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> None:
    if mode == "local":
        write_indices(writer, references - starts[number - 1], int(counts[number - 1]))
    elif mode == "full":
        u = np.searchsorted(starts[: number + 1], references, side="right")  # 0: none; n: the n-th layer of the chain
        write_indices(writer, u, number + 1)
        write_indices(writer, np.where(u > 0, references - starts[u - 1], 0), int(counts[:number].max()))


def _read_references(
    reader: ByteReader, mode: Mode, number: int, counts: NDArray[np.int64], starts: NDArray[np.int64]
) -> _References:
    """Of the layer of a number; `counts` are the kernels of all layers, `starts` the numbers of their first ones."""
    kernels = int(counts[number])
    if mode == "none":
        return partial(np.full, kernels, -1, np.int64)
    before, start = int(counts[number - 1]), int(starts[number - 1])
    if mode == "collocated":
        return partial(collocated_references, kernels, (start, before))
    if mode == "local":
        if before == 1:  # as many references as one likes would take no bytes
            raise reader.fail("form", "references into a layer of one kernel, which are collocated")
        found = read_indices(reader, kernels, before) + start
        return lambda: found
    u = read_indices(reader, kernels, number + 1)
    v = read_indices(reader, kernels, int(counts[:number].max()))
    none = u == 0  # of a kernel without reference v is 0
    if bool((v >= np.where(none, 1, counts[u - 1])).any()):
        raise reader.fail("reference", "a reference to a kernel that its layer does not have")
    stored: NDArray[np.int64] = np.where(none, -1, starts[u - 1] + v)
    return lambda: stored


def _ancestral(
    reader: ByteReader,
    heads: Sequence[tuple[TensorInfo, _Head | None]],
    structure: StructureSection | None,
    budget: Budget,
) -> list[_References]:
    """The references that follow from the provenance; empty where no layer needs them."""
    if not any(head is not None and head[0] == "ancestral" for _, head in heads):
        return []
    names = [info.name for info, _ in heads]
    counts = [info.shape[0] * info.shape[1] for info, _ in heads]
    provenance: Provenance = {} if structure is None else structure.provenance
    try:
        origins = chain_origins(names, counts, provenance)
    except TensorError as error:
        raise reader.fail("origin", str(error)) from None
    if origins is None:
        raise reader.fail("origin", f"{names[-1]}: references from a provenance that the file does not hold")
    budget.hold(_ANCESTOR_BYTES * sum(counts), "a pruned chain of so many kernels")
    lineage = Lineage(origins)
    return [partial(lineage.references, number) for number in range(len(origins))]


def _folded(kernel_size: Sequence[int]) -> tuple[int, int]:
    """The size of kernels of one, two or three dimensions as two numbers."""
    return math.prod(kernel_size[:-1]), kernel_size[-1]


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo], size: tuple[int, int]) -> TensorInfo:
    info = read_info(reader, directory, "a chain")
    if info.storage != "coded" or not is_real(info.dtype):
        raise reader.fail("unfit", f"{info.name}: a chain holds a tensor that is {info.storage}, {info.dtype}")
    if len(info.shape) not in (3, 4, 5) or _folded(info.shape[2:]) != size or info.numel == 0:
        raise reader.fail("unfit", f"{info.name}: shape {info.shape} in a chain of {size[0]}x{size[1]} kernels")
    return info


def _read_map(reader: ByteReader, info: TensorInfo, budget: Budget) -> _Map:
    packed = read_map(reader, info, budget)
    budget.hold(len(packed), "a map of zeros")
    zeros = count_ones(packed)
    if zeros in (0, info.numel):
        raise reader.fail("zeros", f"{info.name}: a map with {zeros} of {info.numel} weights 0")
    return packed, zeros


def _read_head(reader: ByteReader, info: TensorInfo, first: bool) -> _Head:
    code, step = reader.u8(), reader.f32()
    mode_number, bits = (code & ~_ZERO_MAP) >> 4, code & 0x0F
    if mode_number >= len(_MODES) or bits not in BITS:
        raise reader.fail("form", f"{info.name}: unknown mode {mode_number} or bit width {bits}")
    if not math.isfinite(step) or step < 0 or struct.pack("<f", step) == struct.pack("<f", -0.0):
        raise reader.fail("range", f"{info.name}: step {step}, expected a finite number >= 0")
    if first and mode_number != 0:
        raise reader.fail("reference", f"{info.name}: the first layer of a chain has no reference")
    return _MODES[mode_number], bits, step, bool(code & _ZERO_MAP)
