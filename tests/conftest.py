"""Shared fixtures. Toolkits and data that a test needs are never skipped over: what is missing fails."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin.testing import settle
from ilwp_plugin.zoo import build_model

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("default")


@pytest.fixture
def mobilenet(images: Tensor) -> nn.Module:
    """A small network with random weights that tells images apart, three input channels."""
    torch.manual_seed(0)
    return settle(build_model("mobilenet", width=0.25, stem_stride=2), images).train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
