"""Tensors and layers as torch can make them: stored and restored, or refused by what they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize, prune

from ilwp_plugin import compress, loads
from ilwp_plugin.errors import TensorError
from ilwp_plugin.training import FakeQuantizer


class Plain(Tensor):
    """A subclass that does nothing."""


ODD: dict[str, Any] = {
    "stride 0": lambda: torch.randn(1, 5).expand(4, 5),
    "stride 0 of kernels": lambda: torch.randn(1, 1, 3, 3).expand(8, 1, 3, 3),
    "overlapping": lambda: torch.randn(10).as_strided((4, 4), (1, 1)),
    "transposed": lambda: torch.randn(5, 7).t(),
    "in steps": lambda: torch.randn(10, 10)[::2, 1::3],
    "channels last": lambda: torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
    "conjugated": lambda: torch.randn(3, 3, dtype=torch.complex64).conj(),
    "negated": lambda: torch.randn(3, 3, dtype=torch.complex64).conj().imag,
    "of a graph": lambda: torch.randn(3, 3, requires_grad=True) * 2,
    "subclass": lambda: torch.randn(4, 4).as_subclass(Plain),
    "many dimensions": lambda: torch.randn(*[2] * 12),
    "made without autograd": lambda: torch.inference_mode()(torch.randn)(3, 3),
}


@pytest.mark.parametrize("kind", list(ODD))
def test_layouts_do_not_matter(kind: str) -> None:
    torch.manual_seed(0)
    value = ODD[kind]()
    plain = value.detach().as_subclass(Tensor).resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    for preset in ("lossless", "small"):
        files = [compress({"x.weight": tensor}, preset).to_bytes() for tensor in (value, plain)]
        assert files[0] == files[1]
    restored = loads(compress({"x.weight": value}, "lossless").to_bytes()).state_dict()["x.weight"]
    assert type(restored) is Tensor and torch.equal(restored, plain) and restored.dtype == value.dtype


def _fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(3, 3)


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is nested"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "is nested"),
        (_fake(), "is a FakeTensor"),
    ],
)
def test_tensors_without_values_of_their_own(tensor: Tensor, what: str) -> None:
    for preset in ("small", "lossless", "paper"):
        with pytest.raises(TensorError, match=f"'x.weight' {what}; a .ilwp file holds dense tensors"):
            compress({"x.weight": tensor}, preset)


def test_models_whose_parameters_share_their_elements() -> None:
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.randn(1, 3).expand(4, 3))
    file = compress(nn.Linear(3, 4))
    for load in (file.apply_to, file.restore):
        weight = model.weight
        load(model)
        assert model.weight is weight and torch.equal(weight, file.tensor("weight"))


def test_models_that_cannot_be_written_to() -> None:
    with torch.inference_mode():
        model = nn.Linear(3, 4)
    before = model.weight.clone()
    with pytest.raises(TensorError, match="'weight' of Linear was made under torch.inference_mode"):
        compress(nn.Linear(3, 4)).apply_to(model)
    assert torch.equal(model.weight, before)


def test_what_is_on_a_weight_says_how_it_comes_off(mobilenet: nn.Module) -> None:
    quantizer = FakeQuantizer(mobilenet, {"bits": 4})
    with pytest.raises(TensorError, match=r"quantizer.remove\(\) takes it off, and quantizer.compressed\(\) is then"):
        compress(mobilenet, {"bits": 4})
    quantizer.remove()
    compress(mobilenet, {"bits": 4})
    layer = mobilenet.get_submodule("features.3.0")
    prune.l1_unstructured(layer, "weight", 0.5)
    with pytest.raises(TensorError, match="has to be removed first .*prune.remove"):
        compress(mobilenet)
    prune.remove(layer, "weight")
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(TensorError, match="has to be removed first .*parametrize.remove_parametrizations"):
        compress(mobilenet)
