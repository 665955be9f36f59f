"""The peers' side of table.py, in an environment of its own: encodes and decodes the tensors of an .npz file.

python examples/peers/coders.py IN.npz OUT.npz METHOD [QP [QP_OF_VECTORS]]

It prints bytes and seconds as JSON; OUT holds what is restored. METHOD is fp32+zstd, fp16+zstd, int8+zstd, int8+pcodec
or nncodec (with its quantization parameter, and `nonweight_qp`, that of all other tensors).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
import time
import types
from collections.abc import Callable
from unittest.mock import MagicMock

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.generic]]

NONWEIGHT_QP = -75
"""NNCodec's default."""

UNUSED = {"cv2", "flwr", "h5py", "sentencepiece", "sklearn", "tensorflow", "torchvision", "wandb"}
"""What NNCodec imports for its data sets and training, gigabytes in all; its coder needs none of it."""


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets modules that are never used be imported without being there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


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


def coder(
    method: str, qp: int, vectors: int
) -> tuple[Callable[[Tensors], object], Callable[[object], Tensors], Callable[[object], int]]:
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
    if method != "nncodec":
        raise SystemExit(f"unknown method {method!r}")
    sys.meta_path.insert(0, Absent())
    from nncodec import nnc

    def encode_nnc(tensors: Tensors) -> object:
        return nnc.compress(
            dict(tensors),
            qp=qp,
            nonweight_qp=vectors,
            return_bitstream=True,
            bitstream_path=sys.argv[2] + ".nnc",
        )

    return encode_nnc, nnc.decompress, len


def main() -> None:
    source, out, method, *qps = sys.argv[1:]
    qp, vectors = [*map(int, qps), *(0, NONWEIGHT_QP)[len(qps) :]]
    with np.load(source) as file:
        tensors = {name: file[name] for name in file.files}
    encode, decode, size = coder(method, qp, vectors)
    start = time.perf_counter()
    data = encode(tensors)
    middle = time.perf_counter()
    restored = decode(data)
    end = time.perf_counter()
    np.savez(out, **restored)
    print(json.dumps({"bytes": size(data), "encode": middle - start, "decode": end - middle}))


main()
