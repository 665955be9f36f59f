"""Integer tensors, cut into fields of a few bits."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from ilwp_plugin import IlwpConfig, compress, loads

CHAIN = {"a.weight": torch.randn(8, 1, 3, 3), "b.weight": torch.randn(8, 1, 3, 3)}
DTYPES = {torch.uint8: 8, torch.int8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}


def packed(bits: int, dtype: torch.dtype, words: int = 2000) -> tuple[torch.Tensor, float]:
    """Bell-shaped fields of some bits in each integer, as toolkits pack weights, and the bits that they are worth."""
    width = DTYPES[dtype]
    fields = width // bits
    generator = np.random.default_rng(bits)
    middle = 2 ** (bits - 1)
    codes = np.clip(np.rint(generator.normal(middle, middle / 3, (words, fields))), 0, 2**bits - 1).astype(np.uint64)
    values = np.zeros(words, dtype=np.uint64)
    for position in range(fields):
        values |= codes[:, position] << np.uint64(bits * position)
    tensor = torch.from_numpy(values.astype(f"<u{width // 8}").view(f"<i{width // 8}"))
    return tensor.to(dtype).reshape(50, -1), float(
        entropy(np.unique(codes, return_counts=True)[1], base=2)
    ) * codes.size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_packed_weights_take_little_more_than_their_entropy(bits: int, dtype: torch.dtype) -> None:
    tensor, worth = packed(bits, dtype)
    compressed = compress({**CHAIN, "q.qweight": tensor}, IlwpConfig.paper(bits=4))
    data = compressed.to_bytes()
    restored = loads(data)
    assert torch.equal(restored.state_dict()["q.qweight"], tensor)
    assert restored.state_dict()["q.qweight"].dtype == dtype
    assert restored.ledger == compressed.ledger and len(data) == compressed.ledger.file_bytes
    size = compressed.ledger.layers["q.qweight"].file_bytes
    assert size < min(1.02 * worth / 8 + 200, tensor.nbytes)
    if bits == 8:  # bits=8 alone divides no better than what it is made of
        assert size > worth / 8


def test_what_would_not_be_smaller_stays_as_it_is() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(-(2**31), 2**31, 4000).astype(np.int32))
    state = {
        **CHAIN,
        "n.num_batches_tracked": torch.tensor(7),
        "noise": noise,
        "flags": torch.zeros(500, dtype=torch.bool),
    }
    assert [info.storage for info in compress(state, "paper").tensors[2:]] == ["raw"] * 3


def test_transposed_shared_and_changed_integers() -> None:
    tensor, _ = packed(4, torch.int32)
    state = {**CHAIN, "q": tensor.T, "again": tensor.T, "empty": torch.zeros(0, 4, dtype=torch.int64)}
    compressed = compress(state, IlwpConfig.paper(bits=4))
    restored = loads(compressed.to_bytes()).state_dict()
    assert all(torch.equal(restored[name], state[name]) for name in ("q", "again", "empty"))
    changed = compressed.with_others_of(compressed.state_dict() | {"q": torch.zeros_like(tensor.T)})
    assert torch.equal(loads(changed.to_bytes()).state_dict()["q"], torch.zeros_like(tensor.T))
    assert changed.ledger.layers["q"].file_bytes < 60
