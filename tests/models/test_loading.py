"""Tensors into models without values."""

import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import compress
from ilwp_plugin.errors import TensorError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(9, 4), nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 9, bias=False)
        self.out.weight = self.words.weight
        self.norm.weight.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(self.words(tokens)))


def test_a_model_on_the_meta_device_is_filled() -> None:
    model = Tied()
    compressed = compress(model, "lossless")
    with torch.device("meta"):
        empty = Tied()
    for target in (empty, Tied().to("meta")):
        compressed.apply_to(target)
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in target.state_dict().items())
        assert target.words.weight.requires_grad and not target.norm.weight.requires_grad
        assert torch.equal(target.eval()(torch.arange(9)), model.eval()(torch.arange(9)))
        assert (target.out.weight.data_ptr() == target.words.weight.data_ptr()) == (target is empty)
    assert empty.out.weight is empty.words.weight and isinstance(empty.out.weight, nn.Parameter)


def test_a_tensor_that_no_file_holds_is_named() -> None:
    model = Tied()
    model.register_buffer("table", torch.ones(3), persistent=False)
    compressed = compress(model, "lossless")
    empty = model.to("meta")
    with pytest.raises(TensorError, match="Tied is on the meta device, and 'table' is in no file"):
        compressed.apply_to(empty)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())


def test_lazy_layers_are_refused() -> None:
    compressed = compress(nn.Sequential(nn.Linear(3, 4)), "lossless")
    with pytest.raises(TensorError, match="'0.weight' belongs to a lazy layer"):
        compressed.apply_to(nn.Sequential(nn.LazyLinear(4)))
