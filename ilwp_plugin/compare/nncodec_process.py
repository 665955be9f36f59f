"""NNCodec's side of `compare.nncodec`: a script for the interpreter that has NNCodec, without this package.

python nncodec_process.py encode IN.npz OUT.nnc QP NONWEIGHT_QP
python nncodec_process.py decode IN.nnc OUT.npz

It prints the seconds that the coder took, without imports and the files of arrays.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import time
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

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


def main() -> None:
    what, source, out, *qps = sys.argv[1:]
    sys.meta_path.insert(0, Absent())
    nnc = importlib.import_module("nncodec.nnc")

    if what == "encode":
        qp, nonweight_qp = map(int, qps)
        with np.load(source) as file:
            tensors = {name: file[name] for name in file.files}
        start = time.perf_counter()
        data = nnc.compress(tensors, qp=qp, nonweight_qp=nonweight_qp, return_bitstream=True, bitstream_path=out)
        seconds = time.perf_counter() - start
        Path(out).write_bytes(data)
    else:
        data = bytearray(Path(source).read_bytes())
        start = time.perf_counter()
        tensors = nnc.decompress(data)
        seconds = time.perf_counter() - start
        np.savez(out, **tensors)
    print(seconds)


if __name__ == "__main__":
    main()
