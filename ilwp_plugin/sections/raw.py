"""The raw section: the values of all untouched tensors, one after the other, little-endian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ilwp_plugin.container import SectionBytes, SectionKind, TensorInfo
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.stream import ByteReader

__all__ = ["decode_raw", "encode_raw", "measure_raw", "raw_bytes"]


def raw_bytes(tensor: Tensor) -> memoryview:
    """The values of a CPU tensor as bytes, in row-major order; no copy where the tensor is contiguous."""
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    if flat.stride(0) != 1:  # also of one element, which torch calls contiguous whatever its stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def measure_raw(tensors: Sequence[TensorInfo]) -> tuple[SectionKind, int, Ledger]:
    """Length and ledger of the raw section, without its bytes."""
    ledger = Ledger()
    for info in tensors:
        if info.storage == "raw":
            ledger.charge("other", info.name, info.nbytes)
    return SectionKind.RAW, ledger.file_bytes, ledger


def encode_raw(tensors: Sequence[TensorInfo], values: Mapping[str, Tensor]) -> SectionBytes:
    """The raw section.

    Args:
        tensors: the directory; its "raw" entries are written, in its order.
        values: the tensors by name.
    """
    kind, _, ledger = measure_raw(tensors)
    chunks = [raw_bytes(values[info.name]) for info in tensors if info.storage == "raw"]
    return SectionBytes(kind, chunks, ledger)


def decode_raw(reader: ByteReader, tensors: Sequence[TensorInfo]) -> dict[str, Tensor]:
    """The inverse of `encode_raw`; the tensors are copies and keep no hold of the file.

    Raises:
        FormatError: the section's length is not that of the tensors, or a bool is neither 0 nor 1.
    """
    values = {}
    for info in tensors:
        if info.storage == "raw":
            with reader.charge("other", info.name):
                piece = reader.raw(info.nbytes)
            if info.numel:
                flat = torch.frombuffer(bytearray(piece), dtype=torch.uint8)
                if info.dtype == torch.bool and int(flat.max()) > 1:
                    raise reader.fail(f"{info.name}: a bool that is neither 0 nor 1")
                values[info.name] = flat.view(info.dtype).reshape(info.shape)
            else:
                values[info.name] = torch.empty(info.shape, dtype=info.dtype)
    reader.finish()
    return values
