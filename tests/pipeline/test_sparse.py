"""Pruned weights that nothing quantizes."""

import pytest
import torch
from scipy.stats import entropy

from ilwp_plugin import CompressedModel, IlwpConfig, compress, loads
from ilwp_plugin.format import SparseSection
from ilwp_plugin.ledger import Ledger


def state(density: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    kept = torch.rand(256, 128) < density
    return {
        "a.weight": torch.randn(8, 1, 3, 3),
        "b.weight": torch.randn(8, 1, 3, 3),
        "sparse.weight": (torch.randn(256, 128) * kept).to(dtype),
    }


def sparse(model: CompressedModel) -> list[str]:
    return [name for section in model.sections if isinstance(section, SparseSection) for name in section.names]


def size(ledger: Ledger) -> int:
    return ledger.layers["sparse.weight"].file_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("density", [0.02, 0.2, 0.5, 0.9])
def test_little_more_than_the_other_values_and_the_entropy_of_the_map(density: float, dtype: torch.dtype) -> None:
    model = state(density, dtype)
    weight = model["sparse.weight"]
    compressed = compress(model, IlwpConfig.paper(bits=4))
    data = compressed.to_bytes()
    restored = loads(data)
    assert all(torch.equal(t, compressed.state_dict()[name]) for name, t in restored.state_dict().items())
    assert torch.equal(restored.state_dict()["sparse.weight"], weight)
    others = int((weight != 0).sum())
    share = others / weight.numel()
    bound = others * weight.itemsize + weight.numel() / 8 * entropy([share, 1 - share], base=2)
    found = size(compressed.ledger)
    assert found < bound + 0.05 * weight.numel() / 8 + 200
    assert bound < found or not sparse(compressed), "the values' own redundancy was worth more"
    assert restored.ledger == compressed.ledger and len(data) == compressed.ledger.file_bytes


def test_only_the_sign_of_zeros_is_lost() -> None:
    model = state(0.1)
    model["sparse.weight"][0, :4] = torch.tensor([-0.0, float("nan"), float("inf"), -1e-45])
    restored = loads(compress(model, "paper").to_bytes()).state_dict()["sparse.weight"]
    assert bool(model["sparse.weight"].signbit().logical_and(model["sparse.weight"] == 0).any())
    expected = torch.where(model["sparse.weight"] == 0, 0.0, model["sparse.weight"])
    assert restored.numpy().tobytes() == expected.numpy().tobytes()


def test_what_would_not_be_smaller_stays_as_it_is() -> None:
    dense = state(1.0)
    one_zero = {**dense, "sparse.weight": dense["sparse.weight"].clone()}
    one_zero["sparse.weight"][0, 0] = 0
    whole = compress(dense, "paper")
    assert not sparse(whole) and size(compress(one_zero, "paper").ledger) <= 1.001 * size(whole.ledger)
    others = {"bias": torch.zeros(4096), "flags": torch.zeros(64, 64, dtype=torch.bool)}
    assert not sparse(compress({**dense, **others}, "paper"))


def test_shared_weights_are_stored_once_and_new_values_are_taken_over() -> None:
    model = state(0.2)
    compressed = compress({**model, "again": model["sparse.weight"]}, IlwpConfig.paper(bits=4))
    assert sparse(compressed) == ["sparse.weight"]
    assert torch.equal(loads(compressed.to_bytes()).state_dict()["again"], model["sparse.weight"])
    changed = compressed.state_dict() | {"sparse.weight": torch.ones(256, 128)}
    later = compressed.with_others_of(changed)
    assert sparse(later) == ["again"]
    assert torch.equal(loads(later.to_bytes()).state_dict()["sparse.weight"], torch.ones(256, 128))
