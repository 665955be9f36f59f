"""Makes the valid files of the corpus. Files of a released format version are never made anew: they decode for ever.

python -m tests.corpus.golden       writes those of valid/*.ilwp and .safetensors that are missing, and hashes.json
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from ilwp_plugin import CompressedModel, IlwpConfig, compress
from ilwp_plugin.method.provenance import Origin
from ilwp_plugin.weights import write_safetensors

FOLDER = Path(__file__).parent / "valid"


def model(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state dict with two chains and every kind of other tensor."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state = {
        "0.conv.weight": random(6, 1, 3, 3).to(dtype),
        "1.conv.weight": random(4, 1, 5, 5).to(dtype),
        "2.conv.weight": random(12, 1, 3, 3).to(dtype),
        "2.norm.running_mean": random(12),
        "2.norm.num_batches_tracked": torch.tensor(7),
        "3.conv.weight": random(9, 1, 5, 5).to(dtype),
        "4.conv.weight": random(10, 1, 3, 3).to(dtype),
        "4.mask": torch.tensor([True, False]),
        "4.scale": torch.tensor([1.5, float("nan"), float("inf"), -0.0], dtype=torch.bfloat16),
        "5.empty": torch.zeros(0, 3),
    }
    return {**state, "6.shared.weight": state["4.conv.weight"]}


CASES: dict[str, tuple[torch.dtype, IlwpConfig]] = {
    "v1_none": (torch.float32, IlwpConfig(mode="none")),
    "v1_collocated": (torch.float32, IlwpConfig()),
    "v1_local_3bit": (torch.float32, IlwpConfig(mode="local", bits=3)),
    "v1_full_2bit": (torch.float32, IlwpConfig(mode="full", bits=2)),
    "v1_fp16_anchor": (torch.float32, IlwpConfig(anchor="fp16", bits=5, range="mse")),
    "v1_quantized_anchor": (torch.float32, IlwpConfig(anchor="quantized", bits=6, mode="full", range="percentile")),
    "v1_half": (torch.float16, IlwpConfig(bits=4)),
    "v1_bfloat16": (torch.bfloat16, IlwpConfig(bits=4)),
    "v1_double": (torch.float64, IlwpConfig(bits=4)),
    "v1_pruned": (torch.float32, IlwpConfig(bits=4, coder="huffman")),
    "v1_masked": (torch.float32, IlwpConfig(bits=4, anchor="quantized", coder="huffman")),
}

ORIGINS = {
    "0.conv": Origin(torch.tensor([1, 2, 3, 5, 6, 7]), 8),
    "2.conv": Origin(torch.tensor([0, 1, 2, 3, 4, 6, 7, 9, 10, 11, 12, 15]), 16),
    "3.conv": Origin.whole(9),
    "4.conv": Origin(torch.tensor([11, 3, 2, 0, 1, 7, 8, 5, 4, 10]), 12),
}


def made(name: str) -> CompressedModel:
    """The model of a case, compressed."""
    dtype, config = CASES[name]
    references = ORIGINS if name == "v1_pruned" else None
    state = model(dtype)
    if name == "v1_masked":
        state |= {key: tensor * (tensor > 0) for key, tensor in state.items() if tensor.dim() == 4 and key[0] < "4"}
    return compress(state, config, references=references, metadata={"made by": "tests/corpus/golden.py"})


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    hashes = {}
    for name in CASES:
        if not (FOLDER / f"{name}.ilwp").exists():
            made(name).save(FOLDER / f"{name}.ilwp")
            write_safetensors(made(name).state_dict(), FOLDER / f"{name}.safetensors")
        hashes[name] = hashlib.sha256((FOLDER / f"{name}.ilwp").read_bytes()).hexdigest()
    (FOLDER / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    main()
