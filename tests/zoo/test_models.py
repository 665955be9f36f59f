import pytest
import torch
from torch import nn

from ilwp_plugin.errors import DataError, RegistryError
from ilwp_plugin.models.chains import find_chains
from ilwp_plugin.zoo import MODELS, build_model, scope_layers, scope_of


def depthwise_weights(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1)


def test_mobilenet_has_the_weights_of_the_paper() -> None:
    assert depthwise_weights(build_model("mobilenet")) == 44640
    assert depthwise_weights(build_model("mobilenet", width=0.5, in_channels=1)) == 22320
    assert depthwise_weights(build_model("mobilenet", width=0.25)) == 11160


def test_dense_networks_have_the_parameters_of_their_papers() -> None:
    """ResNet-20 has .27 M (He et al. 2016, table 6); the VGG-like one has the first four stages of VGG-16."""
    resnet = build_model("resnet20")
    assert sum(p.numel() for p in resnet.parameters()) == 269_722
    assert sum(m.weight.numel() for m in scope_layers(resnet).values()) == 267_696
    vgg = [tuple(layer.weight.shape[:2]) for layer in scope_layers(build_model("vgg")).values()]
    assert vgg == [
        (64, 3),
        (64, 64),
        (128, 64),
        (128, 128),
        (256, 128),
        (256, 256),
        (256, 256),
        (512, 256),
        *[(512, 512)] * 2,
    ]


def test_lenets_have_the_parameters_of_their_papers() -> None:
    """Caffe's LeNet-5 has 431 k, LeNet-300-100 266 k (Han et al. 2015, table 1); all images are 28x28 for them."""
    for name, parameters in (("lenet300", 266_610), ("lenet5", 431_080)):
        model = build_model(name, in_channels=1)
        assert sum(p.numel() for p in model.parameters()) == parameters
        image = torch.rand(2, 1, 28, 28)
        expected = model(image)
        for margin in (2, -6):
            x = torch.nn.functional.pad(image, (margin,) * 4)
            inner = torch.nn.functional.pad(x, (-margin,) * 4)
            torch.testing.assert_close(model(x), expected if margin > 0 else model(inner))


def test_shortcuts_of_resnet_have_no_parameters() -> None:
    block = build_model("resnet20").features[6]  # type: ignore[index]
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(2, 16, 8, 8)
    y = block.eval()(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2]) and not y[:, 16:].any()


@pytest.mark.parametrize(
    ("name", "scope", "layers"),
    [("mobilenet", "depthwise", 13), ("shufflenetv2", "depthwise", 19), ("resnet20", "conv", 19), ("vgg", "conv", 10)],
)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_scope(name: str, scope: str, layers: int, in_channels: int) -> None:
    model = build_model(name, width=0.25, in_channels=in_channels)
    assert scope_of(model) == scope
    (chain,) = find_chains(model, scope=scope_of(model))
    assert set(chain.layers) == set(scope_layers(model)) and len(chain.layers) == layers


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
