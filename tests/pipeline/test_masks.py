"""Zeros of pruned weights: exactly zero behind every prediction, and not paid for twice."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from ilwp_plugin import IlwpConfig, compress, load, loads
from ilwp_plugin.errors import TensorError
from ilwp_plugin.training import FakeQuantizer


def depthwise(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


def masked(model: nn.Module, amount: float) -> nn.Module:
    for _, module in depthwise(model):
        prune.random_unstructured(module, "weight", amount)
        prune.remove(module, "weight")
    return model


@pytest.mark.parametrize("mode", ["none", "collocated", "local", "full"])
@pytest.mark.parametrize("anchor", ["fp32", "quantized"])
def test_zeros_stay_exactly_zero(mobilenet: nn.Module, mode: str, anchor: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = masked(mobilenet, 0.3)
    compressed = compress(model, {"preset": "paper", "mode": mode, "bits": 4, "anchor": anchor})
    compressed.save(tmp_path / "x.ilwp")
    restored = load(tmp_path / "x.ilwp").state_dict()
    assert compressed.ledger.file_bytes == (tmp_path / "x.ilwp").stat().st_size
    for name, module in depthwise(model):
        weight, zeros = restored[f"{name}.weight"], module.weight == 0
        assert bool((weight[zeros] == 0).all()) and not bool(weight[zeros].signbit().any()), name


@pytest.mark.parametrize("amount", [0.5, 0.8, 0.95])
def test_zeros_cost_their_map_only(mobilenet: nn.Module, amount: float) -> None:
    """At most the entropy of the map (in bytes of it, a table included) and the codes of what is not zero."""
    torch.manual_seed(0)
    dense = compress(mobilenet, {"preset": "paper", "bits": 4}).ledger
    sparse = compress(masked(copy.deepcopy(mobilenet), amount), {"preset": "paper", "bits": 4}).ledger
    weights = sum(m.weight.numel() for _, m in depthwise(mobilenet)[1:])
    entropy = -amount * np.log2(amount) - (1 - amount) * np.log2(1 - amount)
    maps = weights * entropy / 8
    slack = 13 * 60 + 0.15 * maps
    assert sparse.texture_bytes < dense.texture_bytes * (1 - amount) * 1.1 + maps + slack
    assert sparse.total_bytes < dense.total_bytes


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, -0.5]), min_size=4, max_size=4), min_size=2, max_size=6))
def test_any_pattern(rows: list[list[float]]) -> None:
    state = {
        "a.weight": torch.tensor([[0.3, -0.1, 0.0, 1.0]]).view(1, 1, 2, 2),
        "b.weight": torch.tensor(rows).view(-1, 1, 2, 2),
        "c.weight": torch.tensor(rows[::-1]).view(-1, 1, 2, 2) * 0.9,
    }
    for mode in ("none", "collocated", "full"):
        config = IlwpConfig.paper(mode=mode, bits=3, layers=("a", "b", "c"))
        restored = loads(compress(state, config).to_bytes()).state_dict()
        for name, tensor in state.items():
            assert bool((restored[name][tensor == 0] == 0).all())


def test_masks_survive_quantization_aware_training(mobilenet: nn.Module, images: Tensor) -> None:
    torch.manual_seed(0)
    model = masked(mobilenet, 0.5)
    zeros = {name: module.weight.detach() == 0 for name, module in depthwise(model)}
    config = IlwpConfig.paper(bits=4)
    quantizer = FakeQuantizer(model, config)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, module in depthwise(model):
            assert bool((module.weight[zeros[name]] == 0).all())
    model.eval()
    seen = model(images).detach()
    quantizer.remove()
    for name, module in depthwise(model):
        assert bool((module.weight[zeros[name]] == 0).all()) and bool((module.weight[~zeros[name]] != 0).any())
    compress(model, config).apply_to(model)
    assert torch.equal(model(images), seen)


def test_masks_that_are_not_permanent_are_refused(mobilenet: nn.Module) -> None:
    prune.random_unstructured(depthwise(mobilenet)[3][1], "weight", 0.5)
    with pytest.raises(TensorError, match=r"torch\.nn\.utils\.prune\.remove"):
        compress(mobilenet, {})
