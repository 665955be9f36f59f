"""Makes the valid files of the corpus. Files of a released format version are never made anew: they decode for ever.

python -m tests.corpus.golden       writes valid/v1_*.ilwp and .safetensors, and hashes.json, of new cases
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ilwp_plugin import CompressedModel, IlwpConfig, IntegerTensor, compress
from ilwp_plugin.errors import IlwpWarning
from ilwp_plugin.method.provenance import Origin
from ilwp_plugin.models.weights import write_safetensors

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


def whole_model() -> dict[str, Tensor]:
    """A small network whose every weight goes onto a grid, with batch norms."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}
    for number, (shape, channels) in enumerate(
        [((6, 3, 3, 3), 6), ((6, 1, 3, 3), 6), ((12, 6, 1, 1), 12), ((12, 1, 3, 3), 12)]
    ):
        state[f"{number}.conv.weight"] = torch.randn(*shape, generator=generator)
        state[f"{number}.norm.weight"] = torch.randn(channels, generator=generator)
        state[f"{number}.norm.bias"] = torch.randn(channels, generator=generator)
        state[f"{number}.norm.running_mean"] = torch.randn(channels, generator=generator)
        state[f"{number}.norm.running_var"] = torch.rand(channels, generator=generator) + 0.5
        state[f"{number}.norm.num_batches_tracked"] = torch.tensor(9)
    state["head.weight"] = torch.randn(5, 12, generator=generator)
    state["head.bias"] = torch.randn(5, generator=generator)
    return state


def integers() -> dict[str, IntegerTensor]:
    """Codes as a toolkit has them: two depthwise layers that resemble each other, and a linear layer."""
    generator = torch.Generator().manual_seed(2)
    first = torch.randint(-127, 128, (8, 1, 3, 3), generator=generator)
    second = (first + torch.randint(-3, 4, first.shape, generator=generator)).clamp(-128, 127)
    scale = torch.rand(8, generator=generator)
    return {
        "0.weight": IntegerTensor(first.to(torch.int8), scale),
        "1.weight": IntegerTensor(second.to(torch.int8), scale.flip(0)),
        "2.weight": IntegerTensor(
            torch.randint(0, 256, (4, 8), generator=generator).to(torch.uint8), torch.tensor(0.125), torch.tensor(131)
        ),
        "3.weight": IntegerTensor(
            torch.randint(0, 16, (4, 8), generator=generator), torch.rand(8, generator=generator), torch.arange(8), 1
        ),
    }


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
}

ORIGINS = {
    "0.conv": Origin(torch.tensor([1, 2, 3, 5, 6, 7]), 8),
    "2.conv": Origin(torch.tensor([0, 1, 2, 3, 4, 6, 7, 9, 10, 11, 12, 15]), 16),
    "3.conv": Origin.whole(9),
    "4.conv": Origin(torch.tensor([11, 3, 2, 0, 1, 7, 8, 5, 4, 10]), 12),
}

WHOLE = IlwpConfig(weight_step=0.2, residual_step=0.05, anchor="quantized", batch_norm="merged", batch_norm_eps=1e-5)


def cases() -> dict[str, CompressedModel]:
    """Every case by name, compressed anew."""
    made = {
        name: compress(model(dtype), config.replace(coder="huffman"), metadata={"made by": "tests/corpus/golden.py"})
        for name, (dtype, config) in CASES.items()
    }
    masked = model()
    masked |= {key: tensor * (tensor > 0) for key, tensor in masked.items() if tensor.dim() == 4 and key[0] < "4"}
    made_by, huffman = {"made by": "tests/corpus/golden.py"}, IlwpConfig(bits=4, coder="huffman")
    made["v1_pruned"] = compress(model(), huffman, references=ORIGINS, metadata=made_by)
    made["v1_masked"] = compress(masked, huffman.replace(anchor="quantized"), metadata=made_by)
    sparse = model()["2.conv.weight"].reshape(27, 4)
    sparse = torch.where(sparse > 0.5, sparse, 0.0)
    made["v1_sparse"] = compress({**model(), "7.weight": sparse, "8.weight": sparse.half()}, huffman)
    packed = torch.tensor([0x76543210, -0x12345679, 0, -1, 0x77777777], dtype=torch.int32).repeat(40).reshape(8, 25)
    state = {**model(), "7.qweight": packed, "8.index": torch.arange(600) // 7, "9.codes": (packed % 11).to(torch.int8)}
    made["v1_fields"] = compress(state, huffman)
    made["v1_ans"] = compress(model(), IlwpConfig(coder="ans"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IlwpWarning)
        made["v1_whole"] = compress(whole_model(), WHOLE)
    codes = integers()
    made["v1_integers"] = compress({name: code.restore() for name, code in codes.items()}, quantized=codes)
    return made


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    hashes = json.loads((FOLDER / "hashes.json").read_text())
    for name, compressed in cases().items():
        if name in hashes:
            continue
        compressed.save(FOLDER / f"{name}.ilwp")
        write_safetensors(compressed.state_dict(), FOLDER / f"{name}.safetensors")
        hashes[name] = hashlib.sha256((FOLDER / f"{name}.ilwp").read_bytes()).hexdigest()
    (FOLDER / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    main()
