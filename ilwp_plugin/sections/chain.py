"""The chain section: the anchor, the residual codes, steps and references of one chain."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilwp_plugin.coding import read_indices, write_indices
from ilwp_plugin.container import SectionBytes, SectionKind, TensorInfo
from ilwp_plugin.errors import TensorError
from ilwp_plugin.method.prediction import collocated_references
from ilwp_plugin.method.provenance import Provenance, given_references
from ilwp_plugin.method.quantization import CODE_BITS, KernelPool, QuantizedLayer, largest_code, reconstruct
from ilwp_plugin.sections.codes import read_codes, write_codes
from ilwp_plugin.sections.entries import RestoredTensors, read_info
from ilwp_plugin.sections.raw import raw_bytes
from ilwp_plugin.stream import Account, ByteReader, ByteWriter

__all__ = ["ANCHOR_DTYPES", "ChainSection", "CodedLayer", "Mode"]

Mode = Literal["none", "collocated", "local", "full", "ancestral"]
_MODES: tuple[Mode, ...] = ("none", "collocated", "local", "full", "ancestral")
"""How a layer's references are stored; the position is the number in the file."""

_ZERO_MAP = 0x80
"""In the byte of mode and bits: a map tells which weights are exactly 0."""

ANCHOR_DTYPES: tuple[torch.dtype | None, ...] = (None, torch.float32, torch.float16, torch.bfloat16)
"""How the anchor is stored; None: quantized like the other layers."""


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
        return self.info.shape[0] * self.info.shape[1]


def storage_mode(references: Tensor, earlier: Sequence[int], ancestral: Tensor | None = None) -> Mode:
    """The cheapest way to store references.

    Args:
        references: (kernels,) int64 kernel numbers in the chain, or -1.
        earlier: number of kernels of each earlier layer.
        ancestral: those that follow from the provenance which is stored along.
    """
    if bool((references < 0).all()):
        return "none"
    if torch.equal(references, collocated_references(len(references), earlier)):
        return "collocated"
    if ancestral is not None and torch.equal(references, ancestral):
        return "ancestral"
    return "local" if bool((references >= sum(earlier[:-1])).all()) else "full"


@dataclass(frozen=True, eq=False)
class ChainSection(RestoredTensors):
    """One chain, quantized.

    Attributes:
        kernel_size: height and width.
        anchor: (kernels, taps) in one of ANCHOR_DTYPES; None where the first layer is quantized too.
        layers: all layers in order, the anchor first.
        coder: name of the coder of the residuals, or "auto".
    """

    kernel_size: tuple[int, int]
    anchor: Tensor | None
    layers: tuple[CodedLayer, ...]
    coder: str

    @property
    def taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The restored weights by name, in their own shapes and dtypes."""
        restored = KernelPool(sum(layer.kernels for layer in self.layers), self.taps)
        for layer in self.layers:
            if layer.quantized is not None:
                restored.append(reconstruct(layer.quantized, restored.filled))
            else:
                assert self.anchor is not None
                restored.append(self.anchor.float())
        return {
            layer.info.name: kernels.to(layer.info.dtype).reshape(layer.info.shape)
            for layer, kernels in zip(self.layers, restored.layers, strict=True)
        }

    def encode(self, directory: Sequence[TensorInfo]) -> SectionBytes:
        """The section's bytes, each charged."""
        position = {info.name: i for i, info in enumerate(directory)}
        writer = ByteWriter()
        writer.varint(self.kernel_size[0])
        writer.varint(self.kernel_size[1])
        writer.u8(ANCHOR_DTYPES.index(None if self.anchor is None else self.anchor.dtype))
        writer.varint(len(self.layers))
        for layer in self.layers:
            with writer.charge("header", layer.info.name):
                writer.varint(position[layer.info.name])
                if layer.quantized is not None:
                    mapped = 0 if layer.quantized.zeros is None else _ZERO_MAP
                    writer.u8(mapped | _MODES.index(layer.mode) << 4 | layer.quantized.bits)
                    writer.f32(layer.quantized.step)
        if self.anchor is not None:
            with writer.charge("anchor", self.layers[0].info.name):
                writer.raw(bytes(raw_bytes(self.anchor)))
        coded = [layer for layer in self.layers if layer.quantized is not None]
        for layer in coded:
            if layer.quantized is not None and layer.quantized.zeros is not None:
                with writer.charge(*self._accounts([layer])[0]):
                    write_indices(writer, np.packbits(layer.quantized.zeros.numpy()).astype(np.int64), 256)
        write_codes(writer, self._accounts(coded), [_codes(layer) for layer in coded], self.coder)
        earlier = [] if self.anchor is None else [self.layers[0].kernels]
        for layer in coded:
            with writer.charge("non_texture", layer.info.name):
                _write_references(writer, layer, earlier)
            earlier.append(layer.kernels)
        return SectionBytes(SectionKind.CHAIN, [writer.getvalue()], writer.ledger)

    def _accounts(self, layers: Sequence[CodedLayer]) -> list[Account]:
        anchor = self.layers[0]
        return [("anchor" if layer is anchor else "texture", layer.info.name) for layer in layers]

    @classmethod
    def decode(
        cls, reader: ByteReader, directory: Sequence[TensorInfo], provenance: Provenance | None = None
    ) -> ChainSection:
        """The inverse of `encode`, given what the structure section before it holds. Raises FormatError."""
        size = (reader.varint(), reader.varint())
        anchor_number = reader.u8()
        if anchor_number >= len(ANCHOR_DTYPES):
            raise reader.fail(f"unknown storage {anchor_number} of the anchor")
        anchor_dtype = ANCHOR_DTYPES[anchor_number]
        count = reader.varint()
        if not 1 <= count <= len(directory):
            raise reader.fail(f"a chain of {count} layers, the file has {len(directory)} tensors")
        heads: list[tuple[TensorInfo, _Head | None]] = []
        for number in range(count):
            with reader.charge_later() as entry:
                info = _tensor(reader, directory, size)
                entry.account = ("header", info.name)
                coded = number > 0 or anchor_dtype is None
                heads.append((info, _read_head(reader, info, number == 0) if coded else None))
        taps = size[0] * size[1]
        anchor = None
        if anchor_dtype is not None:
            info = heads[0][0]
            with reader.charge("anchor", info.name):
                piece = reader.raw(info.numel * anchor_dtype.itemsize)
            anchor = torch.frombuffer(bytearray(piece), dtype=anchor_dtype).reshape(-1, taps)
            if not bool(anchor.isfinite().all()):
                raise reader.fail(f"{info.name}: the anchor holds values that are not finite")
        todo = [(info, head) for info, head in heads if head is not None]
        maps = [_read_map(reader, info, head, heads[0][0]) for info, head in todo]
        mapped = [0 if zeros is None else int(zeros.sum()) for zeros in maps]
        accounts: list[Account] = [("anchor" if info is heads[0][0] else "texture", info.name) for info, _ in todo]
        counts = [info.numel - zeros for (info, _), zeros in zip(todo, mapped, strict=True)]
        codes, coder_name = read_codes(reader, accounts, counts)
        layers, earlier = [], []
        ancestral = _ancestral(reader, heads, provenance)
        if anchor is not None:
            layers.append(CodedLayer(heads[0][0], None, "none"))
            earlier.append(layers[0].kernels)
        for (info, (mode, bits, step, _)), layer_codes, zeros in zip(todo, codes, maps, strict=True):
            _check_codes(reader, info, layer_codes, bits, step)
            kernels = info.shape[0] * info.shape[1]
            with reader.charge("non_texture", info.name):
                if mode == "ancestral":
                    references = ancestral[len(layers)]
                else:
                    references = _read_references(reader, mode, kernels, earlier)
            values = torch.from_numpy(layer_codes.astype(np.int16))
            if zeros is not None:
                values = torch.zeros(info.numel, dtype=torch.int16).masked_scatter(~zeros, values)
                zeros = zeros.view(kernels, taps)
            values = values.reshape(kernels, taps)
            layers.append(CodedLayer(info, QuantizedLayer(values, step, bits, references, zeros), mode))
            earlier.append(kernels)
        reader.finish()
        section = cls(size, anchor, tuple(layers), coder_name)
        for name, tensor in section.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise reader.fail(f"{name}: restores to values that are not finite")
        return section


def _codes(layer: CodedLayer) -> NDArray[np.int64]:
    assert layer.quantized is not None
    codes = layer.quantized.codes if layer.quantized.zeros is None else layer.quantized.codes[~layer.quantized.zeros]
    return codes.numpy().astype(np.int64).ravel()


def _write_references(writer: ByteWriter, layer: CodedLayer, earlier: Sequence[int]) -> None:
    assert layer.quantized is not None
    references = layer.quantized.references.numpy()
    if layer.mode == "local":
        write_indices(writer, references - sum(earlier[:-1]), earlier[-1])
    elif layer.mode == "full":
        starts = np.concatenate([[0], np.cumsum(earlier)])
        u = np.searchsorted(starts, references, side="right")  # 0: none; n: the n-th layer of the chain
        write_indices(writer, u, len(earlier) + 1)
        write_indices(writer, np.where(u > 0, references - starts[u - 1], 0), max(earlier))


def _read_references(reader: ByteReader, mode: Mode, kernels: int, earlier: Sequence[int]) -> Tensor:
    if mode == "none":
        return torch.full((kernels,), -1, dtype=torch.int64)
    if mode == "collocated":
        return collocated_references(kernels, earlier)
    if mode == "local":
        return torch.from_numpy(read_indices(reader, kernels, earlier[-1]) + sum(earlier[:-1]))
    u = read_indices(reader, kernels, len(earlier) + 1)
    v = read_indices(reader, kernels, max(earlier))
    sizes = np.array([1, *earlier])  # of a kernel without reference v is 0
    if bool((v >= sizes[u]).any()):
        raise reader.fail("a reference to a kernel that its layer does not have")
    starts = np.concatenate([[-1], np.cumsum([0, *earlier[:-1]])])
    return torch.from_numpy(starts[u] + v)


def _ancestral(
    reader: ByteReader,
    heads: Sequence[tuple[TensorInfo, _Head | None]],
    provenance: Provenance | None,
) -> list[Tensor]:
    """The references that follow from the provenance; empty where no layer needs them."""
    if not any(head is not None and head[0] == "ancestral" for _, head in heads):
        return []
    names = [info.name.removesuffix(".weight") for info, _ in heads]
    counts = [info.shape[0] * info.shape[1] for info, _ in heads]
    try:
        given = given_references(names, counts, provenance or {})
    except TensorError as error:
        raise reader.fail(str(error)) from None
    if given[-1] is None:
        raise reader.fail(f"{names[-1]}: references from a provenance that the file does not hold")
    return [torch.empty(0) if references is None else references for references in given]


def _tensor(reader: ByteReader, directory: Sequence[TensorInfo], size: tuple[int, int]) -> TensorInfo:
    info = read_info(reader, directory, "a chain")
    if info.storage != "coded" or not info.dtype.is_floating_point or info.dtype.itemsize == 1:
        raise reader.fail(f"{info.name}: a chain holds a tensor that is {info.storage}, {info.dtype}")
    if len(info.shape) != 4 or info.shape[2:] != size or info.numel == 0:
        raise reader.fail(f"{info.name}: shape {info.shape} in a chain of {size[0]}x{size[1]} kernels")
    return info


def _read_map(reader: ByteReader, info: TensorInfo, head: _Head, first: TensorInfo) -> Tensor | None:
    """(weights,) bool: which are exactly 0; None where the layer has no map."""
    if not head[3]:
        return None
    length = (info.numel + 7) // 8
    # Eight weights take at least a bit: what is allocated for the map is bounded by what is there.
    if length > 8 * reader.remaining:
        raise reader.fail(f"{info.name}: a map of {info.numel} weights in {reader.remaining} bytes")
    with reader.charge("anchor" if info is first else "texture", info.name):
        packed = read_indices(reader, length, 256).astype(np.uint8)
    bits = np.unpackbits(packed)
    zeros = bits[: info.numel].astype(bool)
    if bits[info.numel :].any() or zeros.all() or not zeros.any():
        raise reader.fail(f"{info.name}: a map with {int(zeros.sum())} of {info.numel} weights 0, or with padding")
    return torch.from_numpy(zeros)


def _read_head(reader: ByteReader, info: TensorInfo, first: bool) -> _Head:
    code, step = reader.u8(), reader.f32()
    mode_number, bits = (code & ~_ZERO_MAP) >> 4, code & 0x0F
    if mode_number >= len(_MODES) or bits not in CODE_BITS:
        raise reader.fail(f"{info.name}: unknown mode {mode_number} or bit width {bits}")
    if not math.isfinite(step) or step < 0 or struct.pack("<f", step) == struct.pack("<f", -0.0):
        raise reader.fail(f"{info.name}: step {step}, expected a finite number >= 0")
    if first and mode_number != 0:
        raise reader.fail(f"{info.name}: the first layer of a chain has no reference")
    return _MODES[mode_number], bits, step, bool(code & _ZERO_MAP)


def _check_codes(reader: ByteReader, info: TensorInfo, codes: NDArray[np.int64], bits: int, step: float) -> None:
    largest = int(np.abs(codes).max())
    if largest > (largest_code(bits) if step > 0 else 0):
        raise reader.fail(f"{info.name}: a code of magnitude {largest} at {bits} bits, step {step}")
