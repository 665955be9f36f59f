import pytest
import torch
from torch import nn

from ilwp_plugin.errors import DataError, RegistryError
from ilwp_plugin.zoo import MODELS, build_model


def depthwise_weights(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1)


def test_mobilenet_has_the_weights_of_the_paper() -> None:
    assert depthwise_weights(build_model("mobilenet")) == 44640
    assert depthwise_weights(build_model("mobilenet", width=0.5, in_channels=1)) == 22320
    assert depthwise_weights(build_model("mobilenet", width=0.25)) == 11160


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(("channels", "classes", "stride", "size"), [(3, 10, 1, 32), (1, 7, 2, 16)])
@pytest.mark.parametrize("width", [0.25, 0.5, 1.0])
def test_shapes(name: str, channels: int, classes: int, stride: int, size: int, width: float) -> None:
    model = build_model(name, width=width, stem_stride=stride, in_channels=channels, classes=classes)
    assert model(torch.randn(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = build_model(name, width=0.25)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_errors() -> None:
    with pytest.raises(RegistryError, match="did you mean 'mobilenet"):
        build_model("mobilnet")
    with pytest.raises(DataError, match="no mobilenet with width 0"):
        build_model("mobilenet", width=0)
    with pytest.raises(DataError, match="no mobilenet with width inf"):
        build_model("mobilenet", width=float("inf"))
    with pytest.raises(DataError, match="no shufflenet of width"):
        build_model("shufflenet", width=0.05)
