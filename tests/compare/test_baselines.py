"""fp32, and zstd behind rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import save
from torch import Tensor, nn

from ilwp_plugin.compare import Case
from ilwp_plugin.compare.baselines import int8_weights
from ilwp_plugin.compare.methods import find_method


def outputs(model: nn.Module, case: Case) -> Tensor:
    with torch.no_grad():
        return model(case.data.test_images)  # type: ignore[no-any-return]


def test_fp32_is_exact(case: Case, tmp_path: Path) -> None:
    method = find_method("fp32")
    made = method.compress(case, method.options())
    assert made.save(tmp_path / "file") is None
    assert torch.equal(outputs(made.restore(tmp_path / "file"), case), outputs(case.model(), case))
    state = case.model().state_dict()
    assert made.raw_bytes == sum(t.numel() * t.element_size() for t in state.values())
    # The first one is the stem, which has one input channel here.
    kernels = [weight for weight in state.values() if weight.shape[1:] == (1, 3, 3)]
    assert made.raw_depthwise_bytes == 4 * sum(weight.numel() for weight in kernels[1:])


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 0.0), ("fp16", 2**-11), ("int8", 0.5 / 127)])
def test_zstd(case: Case, tmp_path: Path, dtype: str, error: float) -> None:
    method = find_method("zstd")
    made = method.compress(case, method.options.from_dict({"dtype": dtype, "level": 3}))
    made.save(tmp_path / "file")
    restored, state = made.restore(tmp_path / "file").state_dict(), case.model().state_dict()
    for name, tensor in state.items():
        allowed = error * tensor.double().abs().max() + 2**-24
        assert float((restored[name].double() - tensor.double()).abs().max()) <= allowed, name
    assert made.raw_bytes <= {"fp32": 1.0, "fp16": 0.51, "int8": 0.32}[dtype] * sum(t.nbytes for t in state.values())
    content = zstandard.ZstdDecompressor().decompress((tmp_path / "file").read_bytes())
    if dtype == "fp32":
        assert content == save({name: tensor.contiguous() for name, tensor in state.items()})


def test_int8_has_a_scale_a_channel(case: Case) -> None:
    model = case.model()
    for name, value in int8_weights(model).items():
        assert value.scale.shape == (len(value.codes),)
        largest = np.abs(value.codes.reshape(len(value.codes), -1)).max(axis=1)
        assert bool((largest == 127).all())
        error = np.abs(value.restore() - model.get_parameter(name).detach().numpy()).reshape(len(value.codes), -1)
        assert bool((error.max(axis=1) <= value.scale * 0.5001).all())
