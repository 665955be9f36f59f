"""Prints the SHA-256 of files and of restored values: the same lines on every machine, whatever computes them.

    python -m tests.determinism

Nothing here is drawn or computed by torch but what the package itself computes with it; without calibration, since
that is done in floating point by other libraries, as FORMAT.md says.
"""

from __future__ import annotations

import hashlib
import os
import warnings

import numpy as np
import torch
from torch import Tensor

from ilwp_plugin import IlwpConfig, compress, loads
from ilwp_plugin.zoo import build_model
from tests.corpus import golden


def state(seed: int) -> dict[str, Tensor]:
    """Depthwise and pointwise layers, batch norms and a linear layer, of numbers that never change."""
    random = np.random.RandomState(seed)
    shapes = {"stem.weight": (8, 3, 3, 3)}
    for i in range(3):
        shapes |= {f"{i}.dw.weight": (8, 1, 3, 3), f"{i}.pw.weight": (8, 8, 1, 1)}
        shapes |= {f"{i}.norm.{role}": (8,) for role in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {"fc.weight": (10, 8), "fc.bias": (10,)}
    found = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape) * 0.3
        found[name] = torch.from_numpy(
            (abs(values) + 0.5 if "norm.w" in name or "var" in name else values).astype("f4")
        )
    return found


def network() -> torch.nn.Module:
    """A whole model, of which more is known than of its state dict."""
    model = build_model("mobilenetv2", width=0.25).eval()
    random = np.random.RandomState(2)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = random.standard_normal(tuple(tensor.shape)) * 0.1
            tensor.copy_(torch.from_numpy(np.asarray(abs(values) + 0.5 if name.endswith("var") else values)))
    return model


CONFIGURATIONS = {
    "default": IlwpConfig(),
    "whole model": IlwpConfig.whole_model(0.02),
    **{
        f"{mode}, {rule}": IlwpConfig.paper(mode=mode, range=rule, bits=bits)
        for mode, rule, bits in (
            ("none", "max", 4),
            ("collocated", "percentile", 5),
            ("local", "mse", 3),
            ("full", "max", 5),
        )
    },
}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name, data in golden.cases().items():
        if "graph" not in name:  # packed by a library of the system
            print(name, hashlib.sha256(data).hexdigest())
    for name, config in ("default", IlwpConfig()), ("whole model", IlwpConfig.whole_model(0.02)):
        print("module,", name, hashlib.sha256(compress(network(), config).to_bytes()).hexdigest())
    for name, config in CONFIGURATIONS.items():
        data = compress(state(0), config).to_bytes()
        print(name, "file", hashlib.sha256(data).hexdigest())
        restored = hashlib.sha256()
        for tensor in loads(data).state_dict().values():
            restored.update(tensor.numpy().tobytes())
        print(name, "restored", restored.hexdigest())
    print("a size", hashlib.sha256(compress(state(0), target_bytes=1700).to_bytes()).hexdigest())


if __name__ == "__main__":
    main()
