"""The peers' side of table.py, in an environment of its own: encodes and decodes the tensors of an .npz file.

python examples/peers/coders.py IN.npz OUT.npz METHOD

It prints bytes and seconds as JSON; OUT holds what is restored. METHOD is fp32+zstd, fp16+zstd, int8+zstd
or int8+pcodec.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.generic]]


def int8(values: NDArray[np.generic]) -> tuple[NDArray[np.int8], np.float32]:
    """Symmetric codes with one step a tensor."""
    step = np.float32(max(float(np.abs(values).max()) / 127, 1e-30))
    return np.rint(values / step).astype(np.int8), step


def is_weight(values: NDArray[np.generic]) -> bool:
    return values.ndim > 1 and values.dtype == np.float32


def general(pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes], dtype: str) -> tuple[Callable, Callable]:
    """All tensors in one stream of a general-purpose coder; as int8 the weights alone."""

    def encode(tensors: Tensors) -> bytes:
        stream, self_described = b"", {}
        for name, values in tensors.items():
            if dtype == "int8" and is_weight(values):
                codes, step = int8(values)
                piece = step.tobytes() + codes.tobytes()
            elif dtype == "fp16" and values.dtype == np.float32:
                piece = values.astype(np.float16).tobytes()
            else:
                piece = values.tobytes()
            stream += piece
            self_described[name] = (values.shape, str(values.dtype))
        head = json.dumps(self_described).encode()
        return pack(len(head).to_bytes(4, "little") + head + stream)

    def decode(data: bytes) -> Tensors:
        stream = unpack(data)
        at = 4 + int.from_bytes(stream[:4], "little")
        restored: Tensors = {}
        for name, (shape, kind) in json.loads(stream[4:at]).items():
            count = int(np.prod(shape, dtype=np.int64))
            if dtype == "int8" and len(shape) > 1 and kind == "float32":
                step = np.frombuffer(stream, np.float32, 1, at)
                codes = np.frombuffer(stream, np.int8, count, at + 4)
                restored[name], at = (codes * step).astype(np.float32).reshape(shape), at + 4 + count
            else:
                stored = np.dtype(np.float16 if dtype == "fp16" and kind == "float32" else kind)
                values = np.frombuffer(stream, stored, count, at).astype(kind)
                restored[name], at = values.reshape(shape), at + count * stored.itemsize
        return restored

    return encode, decode


def coder(method: str) -> tuple[Callable[[Tensors], object], Callable[[object], Tensors], Callable[[object], int]]:
    if method.endswith("+zstd"):
        import zstandard

        return *general(
            zstandard.ZstdCompressor(level=19).compress, zstandard.ZstdDecompressor().decompress, method[:-5]
        ), len
    if method == "int8+pcodec":
        from pcodec import ChunkConfig, standalone

        def encode(tensors: Tensors) -> object:
            parts = {}
            for name, values in tensors.items():
                step = None
                if is_weight(values):
                    codes, step = int8(values)
                    values = codes.astype(np.int16)  # its smallest type
                parts[name] = (standalone.simple_compress(values.ravel(), ChunkConfig()), values.shape, step)
            return parts

        def decode(parts: object) -> Tensors:
            restored = {}
            for name, (data, shape, step) in parts.items():
                values = standalone.simple_decompress(data).reshape(shape)
                restored[name] = values if step is None else (values * step).astype(np.float32)
            return restored

        return encode, decode, lambda parts: sum(len(p[0]) + (0 if p[2] is None else 4) for p in parts.values())
    raise SystemExit(f"unknown method {method!r}")


def main() -> None:
    source, out, method = sys.argv[1:]
    with np.load(source) as file:
        tensors = {name: file[name] for name in file.files}
    encode, decode, size = coder(method)
    start = time.perf_counter()
    data = encode(tensors)
    middle = time.perf_counter()
    restored = decode(data)
    end = time.perf_counter()
    np.savez(out, **restored)
    print(json.dumps({"bytes": size(data), "encode": middle - start, "decode": end - middle}))


main()
