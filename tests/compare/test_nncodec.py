"""NNCodec as a method of a comparison, in an interpreter of its own."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ilwp_plugin.compare import Case, CompareConfig, compare
from ilwp_plugin.compare.methods import find_method
from ilwp_plugin.compare.nncodec import decode, encode
from ilwp_plugin.errors import FileError, IlwpError, MissingDependencyError

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"

ROUNDING = """
    import io
    import numpy as np

    def compress(tensors, qp, nonweight_qp, return_bitstream, bitstream_path):
        if qp == 13:
            raise ValueError("unlucky")
        rounded = {n: np.round(t * 2.0 ** -(qp if t.ndim > 1 else nonweight_qp)) for n, t in tensors.items()}
        buffer = io.BytesIO()
        np.savez(buffer, qps=[qp, nonweight_qp], **rounded)
        return buffer.getvalue()

    def decompress(data):
        with np.load(io.BytesIO(bytes(data))) as file:
            qp, other = file["qps"]
            codes = {name: file[name] for name in file.files if name != "qps"}
        return {n: (c * 2.0 ** (qp if c.ndim > 1 else other)).astype(np.float32) for n, c in codes.items()}
"""
"""A codec that rounds to powers of two, under NNCodec's name."""


@pytest.fixture
def rounding(tmp_path: Path) -> str:
    """An interpreter that has it."""
    package = tmp_path / "site" / "nncodec"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nnc.py").write_text(textwrap.dedent(ROUNDING))
    script = tmp_path / "python"
    path = f'PYTHONSAFEPATH=1 PYTHONPATH="{package.parent}"'
    script.write_text(f'#!/bin/sh\ntest "$1" = -I || exit 3\nshift\n{path} exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_the_model_is_what_the_codec_restores(case: Case, rounding: str, tmp_path: Path) -> None:
    method = find_method("nncodec")
    options = method.options.from_dict({"qp": -4, "nonweight_qp": -9, "python": rounding})
    method.check(options)
    made = method.compress(case, options)
    assert made.save(tmp_path / "file") is None
    restored = made.restore(tmp_path / "file").state_dict()
    for name, tensor in case.state.items():
        step = 2.0 ** (-4 if tensor.dim() > 1 else -9)
        # Counters of batches, which are single numbers, are those of a new network.
        expected = torch.round(tensor / step) * step if tensor.dim() else torch.zeros_like(tensor)
        assert torch.equal(restored[name], expected), name
    assert method.title(options) == "NNCodec, qp -4, others -9"


def test_norms_are_estimated_with_the_restored_weights_and_are_in_the_file(
    case: Case, rounding: str, tmp_path: Path
) -> None:
    method = find_method("nncodec")
    options = method.options.from_dict({"qp": -2, "nonweight_qp": -20, "calibration": 500, "python": rounding})
    made = method.compress(case, options)
    made.save(tmp_path / "file")
    restored = made.restore(tmp_path / "file")
    layers = dict(restored.named_modules())
    name = next(n for n, layer in layers.items() if isinstance(layer, torch.nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    layers[name].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        restored(case.calibration(500))
    inputs = torch.cat(seen)
    mean, expected = restored.get_buffer(f"{name}.running_mean"), inputs.mean((0, 2, 3))
    assert torch.allclose(mean, expected, atol=1e-5)
    assert not torch.allclose(case.state[f"{name}.running_mean"], expected, atol=1e-5)


def test_it_is_looked_for_before_anything_is_trained(tmp_path: Path) -> None:
    def grid(python: str) -> CompareConfig:
        return CompareConfig.from_dict({"methods": [{"method": "nncodec", "options": {"python": python}}]})

    with pytest.raises(MissingDependencyError, match=r"no '/no/python'.*make peers"):
        compare(grid("/no/python"), tmp_path / "out")
    with pytest.raises(MissingDependencyError, match="not installed for"):
        compare(grid(sys.executable), tmp_path / "out")
    assert not (tmp_path / "out" / "trained").exists()


def test_what_the_codec_says_is_passed_on(rounding: str) -> None:
    with pytest.raises(FileError, match="NNCodec failed to encode: ValueError: unlucky"):
        encode(rounding, {"weight": torch.ones(2, 2)}, 13)
    with pytest.raises(IlwpError, match="NNCodec failed to decode"):
        decode(rounding, b"nothing")


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="make peers sets up NNCodec")
def test_nncodec_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {"a.weight": torch.randn(64, 32, 3, 3, generator=generator) / 20, "a.bias": torch.randn(64)}
    sizes, errors = [], []
    for qp in (-38, -28, -18):
        content, _ = encode(str(PEERS), state, qp)
        restored, _ = decode(str(PEERS), content)
        assert restored.keys() == state.keys()
        sizes.append(len(content))
        errors.append(float((restored["a.weight"] - state["a.weight"]).square().mean()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert errors[0] < 1e-5 < errors[2]
