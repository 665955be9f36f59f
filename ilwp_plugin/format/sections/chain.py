"""The chain section: the anchor, the residual codes, steps and references of one chain."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.coding import Histogram, Run, Segment, read_indices, write_indices
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.dtypes import DTYPES, cast, is_finite, is_real, to_float32
from ilwp_plugin.format.kernels import (
    BITS,
    KernelPool,
    QuantizedLayer,
    collocated_references,
    largest_code,
    reconstruct,
)
from ilwp_plugin.format.origins import Provenance, ancestral_references, chain_origins
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section, Summary, read_info
from ilwp_plugin.format.sections.codes import read_codes, write_codes
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
class ChainSection(Section):
    """One chain, quantized.

    Attributes:
        kernel_size: height and width.
        anchor: (kernels, taps), carried in `anchor_dtype`; None where the first layer is quantized too.
        anchor_dtype: one of ANCHOR_DTYPES.
        layers: all layers in order, the anchor first.
        coder: name of the coder of the residuals, or "auto".
    """

    number = 2
    name = "chain"
    single = False
    part = "header"

    def __init__(
        self,
        kernel_size: tuple[int, int],
        anchor: NDArray[Any] | None,
        anchor_dtype: str | None,
        layers: Sequence[CodedLayer],
        coder: str,
    ) -> None:
        self.kernel_size = kernel_size
        self.anchor = anchor
        self.anchor_dtype = anchor_dtype
        self.layers = tuple(layers)
        self.coder = coder

    @property
    def taps(self) -> int:
        """Weights of a kernel."""
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def names(self) -> list[str]:
        return [layer.info.name for layer in self.layers]

    @cached_property
    def kernels(self) -> list[NDArray[np.float32]]:
        """(kernels, taps) of each layer, reconstructed."""
        pool = KernelPool(sum(layer.kernels for layer in self.layers), self.taps)
        for layer in self.layers:
            if layer.quantized is not None:
                pool.append(reconstruct(layer.quantized, pool.filled))
            else:
                assert self.anchor is not None and self.anchor_dtype is not None
                pool.append(to_float32(self.anchor, self.anchor_dtype))
        return pool.layers

    def restore(self, name: str) -> NDArray[Any]:
        number = self.names.index(name)
        return self._restored(number).copy()

    def restore_all(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for number, layer in enumerate(self.layers):
            yield layer.info.name, self._restored(number).copy()

    def _restored(self, number: int) -> NDArray[Any]:
        info = self.layers[number].info
        return cast(self.kernels[number], info.dtype).reshape(info.shape)

    def summaries(self) -> list[Summary]:
        found = []
        for layer in self.layers:
            details: dict[str, Any] = {"kernel_size": self.kernel_size, "kernels": layer.kernels}
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
        accounts = self._accounts([layer.info for layer, _ in coded])
        for account, (_, quantized) in zip(accounts, coded, strict=True):
            if quantized.zeros is not None:
                with writer.charge(*account):
                    write_indices(writer, np.packbits(quantized.zeros), 256)
        write_codes(writer, accounts, [_run(quantized) for _, quantized in coded], self.coder, _TABLE)
        earlier = [] if self.anchor is None else [self.layers[0].kernels]
        for layer, quantized in coded:
            with writer.charge(_REFERENCES, layer.info.name):
                _write_references(writer, layer.mode, quantized.references, earlier)
            earlier.append(layer.kernels)

    def _accounts(self, infos: Sequence[TensorInfo]) -> list[Account]:
        return _accounts(infos, self.layers[0].info)

    def check(self) -> None:
        """Raises TensorError where a weight would be infinite or NaN."""
        for name, restored in self.restore_all():
            dtype = next(layer.info.dtype for layer in self.layers if layer.info.name == name)
            if not is_finite(restored, dtype):
                raise TensorError(f"layer {name!r}: its residuals overflow {dtype}; rescale it or leave it out")

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
        for (info, head), account in zip(todo, accounts, strict=True):
            with reader.charge(*account):
                maps.append(_read_map(reader, info) if head[3] else None)
        segments = [
            Segment(info.numel, (info.numel // taps, taps))
            if zeros is None
            else Segment.flat(info.numel - int(zeros.sum()))
            for (info, _), zeros in zip(todo, maps, strict=True)
        ]
        codes, coder = read_codes(reader, accounts, segments, _TABLE)
        ancestral = _ancestral(reader, heads, context.find(StructureSection))
        layers, earlier = [], []
        if anchor is not None:
            layers.append(CodedLayer(first, None, "none"))
            earlier.append(layers[0].kernels)
        for (info, (mode, bits, step, _)), own, zeros in zip(todo, codes, maps, strict=True):
            _check_codes(reader, info, own, bits, step)
            kernels = info.numel // taps
            with reader.charge(_REFERENCES, info.name):
                if mode == "ancestral":
                    references = ancestral[len(layers)]
                else:
                    references = _read_references(reader, mode, kernels, earlier)
            values = own.astype(np.int16, copy=False)
            if zeros is not None:
                values = np.zeros(info.numel, np.int16)
                values[~zeros] = own
                zeros = zeros.reshape(kernels, taps)
            quantized = QuantizedLayer(values.reshape(kernels, taps), step, bits, references, zeros)
            layers.append(CodedLayer(info, quantized, mode))
            earlier.append(kernels)
        reader.finish()
        section = cls(size, anchor, anchor_dtype, layers, coder)
        for name, restored in section.restore_all():
            if not is_finite(restored, next(layer.info.dtype for layer in layers if layer.info.name == name)):
                raise reader.fail("not-finite", f"{name}: restores to values that are not finite")
        return section


def _accounts(infos: Sequence[TensorInfo], first: TensorInfo) -> list[Account]:
    return [(_ANCHOR if info is first else _TEXTURE, info.name) for info in infos]


def _run(layer: QuantizedLayer) -> Run:
    if layer.zeros is not None:
        return Run.of(layer.codes[~layer.zeros])
    return Run.of(layer.codes.ravel(), Segment(layer.codes.size, layer.codes.shape))


def _write_references(writer: ByteWriter, mode: Mode, references: NDArray[np.int64], earlier: Sequence[int]) -> None:
    if mode == "local":
        write_indices(writer, references - sum(earlier[:-1]), earlier[-1])
    elif mode == "full":
        starts = np.concatenate([[0], np.cumsum(earlier)])
        u = np.searchsorted(starts, references, side="right")  # 0: none; n: the n-th layer of the chain
        write_indices(writer, u, len(earlier) + 1)
        write_indices(writer, np.where(u > 0, references - starts[u - 1], 0), max(earlier))


def _read_references(reader: ByteReader, mode: Mode, kernels: int, earlier: Sequence[int]) -> NDArray[np.int64]:
    if mode == "none":
        return np.full(kernels, -1, np.int64)
    if mode == "collocated":
        return collocated_references(kernels, earlier)
    if mode == "local":
        return read_indices(reader, kernels, earlier[-1]) + sum(earlier[:-1])
    u = read_indices(reader, kernels, len(earlier) + 1)
    v = read_indices(reader, kernels, max(earlier))
    sizes = np.array([1, *earlier])  # of a kernel without reference v is 0
    if bool((v >= sizes[u]).any()):
        raise reader.fail("reference", "a reference to a kernel that its layer does not have")
    starts = np.concatenate([[-1], np.cumsum([0, *earlier[:-1]])])
    result: NDArray[np.int64] = starts[u] + v
    return result


def _ancestral(
    reader: ByteReader, heads: Sequence[tuple[TensorInfo, _Head | None]], structure: StructureSection | None
) -> list[NDArray[np.int64]]:
    """The references that follow from the provenance; empty where no layer needs them."""
    if not any(head is not None and head[0] == "ancestral" for _, head in heads):
        return []
    names = [info.name.removesuffix(".weight") for info, _ in heads]
    counts = [info.shape[0] * info.shape[1] for info, _ in heads]
    provenance: Provenance = {} if structure is None else structure.provenance
    try:
        origins = chain_origins(names, counts, provenance)
    except TensorError as error:
        raise reader.fail("origin", str(error)) from None
    if origins is None:
        raise reader.fail("origin", f"{names[-1]}: references from a provenance that the file does not hold")
    return ancestral_references(origins)


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo], size: tuple[int, int]) -> TensorInfo:
    info = read_info(reader, directory, "a chain")
    if info.storage != "coded" or not is_real(info.dtype):
        raise reader.fail("unfit", f"{info.name}: a chain holds a tensor that is {info.storage}, {info.dtype}")
    if len(info.shape) != 4 or info.shape[2:] != size or info.numel == 0:
        raise reader.fail("unfit", f"{info.name}: shape {info.shape} in a chain of {size[0]}x{size[1]} kernels")
    return info


def _read_map(reader: ByteReader, info: TensorInfo) -> NDArray[np.bool_]:
    """(weights,): which are exactly 0."""
    length = (info.numel + 7) // 8
    # Eight weights take at least a bit: what is allocated for the map is bounded by what is there.
    if length > 8 * reader.remaining:
        raise reader.fail("too-short", f"{info.name}: a map of {info.numel} weights in {reader.remaining} bytes")
    bits = np.unpackbits(read_indices(reader, length, 256).astype(np.uint8))
    zeros = bits[: info.numel].astype(bool)
    if bits[info.numel :].any() or zeros.all() or not zeros.any():
        raise reader.fail(
            "zeros", f"{info.name}: a map with {int(zeros.sum())} of {info.numel} weights 0, or with padding"
        )
    return zeros


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


def _check_codes(reader: ByteReader, info: TensorInfo, codes: NDArray[Any], bits: int, step: float) -> None:
    largest = max(-int(codes.min()), int(codes.max()))
    if largest > (largest_code(bits) if step > 0 else 0):
        raise reader.fail("code", f"{info.name}: a code of magnitude {largest} at {bits} bits, step {step}")
