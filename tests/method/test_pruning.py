import pytest
import torch

from ilwp_plugin.method.pruning import kept_weights, sparsity_at


def test_kept_weights() -> None:
    weights = {
        "a": torch.randn(40, 10, generator=torch.Generator().manual_seed(0)),
        "b": 0.1 * torch.randn(60, 10, generator=torch.Generator().manual_seed(1)),
    }
    for by in ("deviation", "magnitude"):
        kept = kept_weights(weights, 0.7, by)  # type: ignore[arg-type]
        assert sum(int(own.sum()) for own in kept.values()) == 300
        size = {k: w.abs() / (w.square().mean().sqrt() if by == "deviation" else 1) for k, w in weights.items()}
        least = min(float(size[key][own].min()) for key, own in kept.items())
        assert all(float(size[key][~own].max()) <= least for key, own in kept.items())
    assert int(kept["b"].sum()) < 10, "small weights of the network, not of the layer"
    assert all(bool(own.all()) for own in kept_weights(weights, 0.0, "deviation").values())
    zeros = {"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    assert kept_weights(zeros, 0.25, "deviation")["a"].tolist() == [False, False, False, True]


def test_schedule() -> None:
    assert sparsity_at(0, 1, 0.9) == 0.9
    assert [sparsity_at(epoch, 4, 0.8) for epoch in range(5)] == pytest.approx([0.4625, 0.7, 0.7875, 0.8, 0.8])
