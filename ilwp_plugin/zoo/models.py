"""Networks in their usual variants for 32x32 images.

MobileNet, MobileNetV2, ShuffleNet and ShuffleNetV2 have depthwise layers; with width 1 and stride 1 they have the
layers of the networks that the paper trains on CIFAR. ResNet-20 and a VGG-like network have dense convolutions alone.
LeNet-300-100 and LeNet-5 are the networks that papers on quantization report on; they work on 28x28 images.

Each takes a width multiplier, the stride of its first convolution, the number of input channels and of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeGuard

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ilwp_plugin.errors import DataError
from ilwp_plugin.models.chains import Scope
from ilwp_plugin.registry import Registry

__all__ = [
    "LAYERS",
    "MODELS",
    "LeNet300",
    "LeNet5",
    "MobileNet",
    "MobileNetV2",
    "ResNet20",
    "ShuffleNet",
    "ShuffleNetV2",
    "VggLike",
    "build_model",
    "scope_layers",
    "scope_of",
]

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
"""Networks by name; `build_model` makes them."""


def build_model(
    name: str, *, width: float = 1.0, stem_stride: int = 1, in_channels: int = 3, classes: int = 10
) -> nn.Module:
    """Build a network of the registry.

    Args:
        name: mobilenet, mobilenetv2, shufflenet, shufflenetv2, resnet20, vgg, lenet300 or lenet5.
        width: multiplies the number of channels.
        stem_stride: stride of the first convolution.
        in_channels: of the images.
        classes: outputs.

    Raises:
        RegistryError: unknown name.
        DataError: a size that makes no network.
    """
    if not 0 < width < 1000 or stem_stride < 1 or in_channels < 1 or classes < 1:
        raise DataError(
            f"no {name} with width {width}, stem stride {stem_stride}, {in_channels} input channels and "
            f"{classes} classes; expected a width > 0 (and < 1,000) and the others >= 1"
        )
    make = MODELS[name]
    try:
        return make(width=width, stem_stride=stem_stride, in_channels=in_channels, classes=classes)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"no {name} of width {width}: {error}") from error


LAYERS: Mapping[Scope, str] = {"depthwise": "depthwise layers", "conv": "k x k convolutions"}
"""What the layers of a scope are called."""


def scope_of(model: nn.Module) -> Scope:
    """Which convolutions prediction is about: the depthwise ones, or in a network without any all with kernels larger
    than 1x1."""
    return "depthwise" if any(map(_is_depthwise, model.modules())) else "conv"


def scope_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of `scope_of`, by name."""
    if scope_of(model) == "depthwise":
        return {name: m for name, m in model.named_modules() if _is_depthwise(m)}
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    return {name: m for name, m in convolutions.items() if m.kernel_size != (1, 1)}


def _is_depthwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _scale(channels: int, width: float, multiple: int = 8) -> int:
    """The scaled number of channels, a multiple of 8 (or of the groups) and at least that."""
    return max(multiple, round(channels * width / multiple) * multiple)


def _conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


class _Classifier(nn.Module):
    """Features, global average pooling, linear classifier."""

    def __init__(self, features: nn.Sequential, channels: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


@MODELS.register("mobilenet")
class MobileNet(_Classifier):
    """Howard et al. 2017; 13 depthwise layers of 3x3 kernels, 44,640 depthwise weights at width 1."""

    _BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

    def __init__(self, width: float, stem_stride: int, in_channels: int, classes: int) -> None:
        channels = _scale(32, width)
        layers = [*_conv_bn(in_channels, channels, 3, stem_stride), nn.ReLU()]
        for c_out, stride in self._BLOCKS:
            out = _scale(c_out, width)
            layers.append(
                nn.Sequential(
                    *_conv_bn(channels, channels, 3, stride, channels),
                    nn.ReLU(),
                    *_conv_bn(channels, out, 1),
                    nn.ReLU(),
                )
            )
            channels = out
        super().__init__(nn.Sequential(*layers), channels, classes)


class _InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        expand = [*_conv_bn(c_in, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(
            *expand, *_conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *_conv_bn(hidden, c_out, 1)
        )
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


@MODELS.register("mobilenetv2")
class MobileNetV2(_Classifier):
    """Sandler et al. 2018, with the strides of CIFAR variants; 17 depthwise layers of 3x3 kernels."""

    _BLOCKS = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, width: float, stem_stride: int, in_channels: int, classes: int) -> None:
        channels = _scale(32, width)
        layers = [*_conv_bn(in_channels, channels, 3, stem_stride), nn.ReLU6()]
        for expansion, c_out, repeats, stride in self._BLOCKS:
            out = _scale(c_out, width)
            for i in range(repeats):
                layers.append(_InvertedResidual(channels, out, stride if i == 0 else 1, expansion))
                channels = out
        last = _scale(1280, max(width, 1.0))
        layers += [*_conv_bn(channels, last, 1), nn.ReLU6()]
        super().__init__(nn.Sequential(*layers), last, classes)


def _shuffle(x: Tensor, groups: int) -> Tensor:
    return F.channel_shuffle(x, groups)


class _ShuffleUnit(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, groups: int, first: bool) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        branch = c_out - c_in if stride == 2 else c_out
        if branch < groups:
            raise ValueError(f"a unit from {c_in} to {c_out} channels leaves {branch} for its branch")
        hidden = max(groups, c_out // 4 // groups * groups)
        self.reduce = nn.Sequential(*_conv_bn(c_in, hidden, 1, groups=1 if first else groups), nn.ReLU())
        self.depthwise = nn.Sequential(*_conv_bn(hidden, hidden, 3, stride, hidden))
        self.expand = nn.Sequential(*_conv_bn(hidden, branch, 1, groups=groups))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.depthwise(_shuffle(self.reduce(x), self.groups)))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], dim=1))
        return F.relu(x + y)


@MODELS.register("shufflenet")
class ShuffleNet(_Classifier):
    """Zhang et al. 2018 with 2 groups; 16 depthwise layers of 3x3 kernels."""

    _GROUPS = 2
    _STAGES = ((200, 4), (400, 8), (800, 4))

    def __init__(self, width: float, stem_stride: int, in_channels: int, classes: int) -> None:
        channels = _scale(24, width)
        layers = [*_conv_bn(in_channels, channels, 3 if stem_stride > 1 else 1, stem_stride), nn.ReLU()]
        for stage, (c_out, units) in enumerate(self._STAGES):
            out = _scale(c_out, width)
            for unit in range(units):
                stride = 2 if unit == 0 else 1
                layers.append(_ShuffleUnit(channels, out, stride, self._GROUPS, first=stage == unit == 0))
                channels = out
        super().__init__(nn.Sequential(*layers), channels, classes)


class _ShuffleUnitV2(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half = c_out // 2
        self.split = stride == 1
        branch_in = c_in // 2 if self.split else c_in
        self.main = nn.Sequential(
            *_conv_bn(branch_in, half, 1),
            nn.ReLU(),
            *_conv_bn(half, half, 3, stride, half),
            *_conv_bn(half, half, 1),
            nn.ReLU(),
        )
        self.side = (
            nn.Identity()
            if self.split
            else nn.Sequential(*_conv_bn(c_in, c_in, 3, stride, c_in), *_conv_bn(c_in, half, 1), nn.ReLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.split else (x, x)
        return _shuffle(torch.cat([self.side(left), self.main(right)], dim=1), 2)


@MODELS.register("shufflenetv2")
class ShuffleNetV2(_Classifier):
    """Ma et al. 2018, the 1x variant; 19 depthwise layers of 3x3 kernels, three of them on side branches."""

    _STAGES = ((116, 4), (232, 8), (464, 4))

    def __init__(self, width: float, stem_stride: int, in_channels: int, classes: int) -> None:
        channels = _scale(24, width)
        layers = [*_conv_bn(in_channels, channels, 3, stem_stride), nn.ReLU()]
        for c_out, units in self._STAGES:
            out = _scale(c_out, width, 4)
            for unit in range(units):
                layers.append(_ShuffleUnitV2(channels, out, 2 if unit == 0 else 1))
                channels = out
        layers += [*_conv_bn(channels, 1024, 1), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), 1024, classes)


class _BasicBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_bn(c_in, c_out, 3, stride), nn.ReLU(), *_conv_bn(c_out, c_out, 3))
        self.stride, self.more = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        y: Tensor = F.relu(self.body(x) + F.pad(shortcut, [0, 0, 0, 0, 0, self.more]))
        return y


@MODELS.register("resnet20")
class ResNet20(_Classifier):
    """He et al. 2016 for CIFAR, its shortcuts without parameters (option A); 19 convolutions of 3x3 kernels."""

    _STAGES = ((16, 1), (32, 2), (64, 2))

    def __init__(self, width: float, stem_stride: int, in_channels: int, classes: int) -> None:
        channels = _scale(16, width)
        layers = [*_conv_bn(in_channels, channels, 3, stem_stride), nn.ReLU()]
        for c_out, stride in self._STAGES:
            out = _scale(c_out, width)
            for unit in range(3):
                layers.append(_BasicBlock(channels, out, stride if unit == 0 else 1))
                channels = out
        super().__init__(nn.Sequential(*layers), channels, classes)


@MODELS.register("vgg")
class VggLike(_Classifier):
    """The first four stages of VGG-16 (Simonyan & Zisserman 2015) with batch norms, and one linear layer, as CIFAR
    variants are; 10 convolutions of 3x3 kernels."""

    _STAGES = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512)

    def __init__(self, width: float, stem_stride: int, in_channels: int, classes: int) -> None:
        channels = in_channels
        layers: list[nn.Module] = []
        for number, stage in enumerate(self._STAGES):
            if number > 0:
                layers.append(nn.MaxPool2d(2))
            for c_out in stage:
                out = _scale(c_out, width)
                layers += [*_conv_bn(channels, out, 3, 1 if layers else stem_stride), nn.ReLU()]
                channels = out
        super().__init__(nn.Sequential(*layers), channels, classes)


_LENET_SIZE = 28
"""Height and width of the images that the papers train LeNets on."""


@torch.fx.wrap  # its margins depend on the shape, which a symbolic trace does not know
def _lenet_images(x: Tensor) -> Tensor:
    """Images of 28x28 pixels: a margin is cut off, which brings padded images back, or zeros are added around."""
    high, wide = (_LENET_SIZE - size for size in x.shape[-2:])
    return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)) if high or wide else x


@MODELS.register("lenet300")
class LeNet300(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998): three linear layers, 266,610 parameters at width 1 with one input channel.

    It has no convolution: the stem stride takes every such pixel of each row and column.
    """

    def __init__(self, width: float, stem_stride: int, in_channels: int, classes: int) -> None:
        super().__init__()
        first, second = (max(1, round(size * width)) for size in (300, 100))
        self.stem_stride = stem_stride
        side = -(-_LENET_SIZE // stem_stride)
        self.features = nn.Sequential(
            nn.Linear(in_channels * side * side, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()
        )
        self.classifier = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = _lenet_images(x)[:, :, :: self.stem_stride, :: self.stem_stride]
        logits: Tensor = self.classifier(self.features(x.flatten(1)))
        return logits


@MODELS.register("lenet5")
class LeNet5(nn.Module):
    """LeNet-5 as Caffe has it, and the papers on quantization: two 5x5 convolutions, two linear layers, 431,080
    parameters at width 1 with one input channel."""

    def __init__(self, width: float, stem_stride: int, in_channels: int, classes: int) -> None:
        super().__init__()
        first, second, third = (max(1, round(size * width)) for size in (20, 50, 500))
        side = (((_LENET_SIZE - 5) // stem_stride + 1) // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, first, 5, stem_stride), nn.MaxPool2d(2), nn.Conv2d(first, second, 5), nn.MaxPool2d(2)
        )
        self.hidden = nn.Linear(second * side * side, third)
        self.classifier = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(_lenet_images(x)).flatten(1)
        logits: Tensor = self.classifier(F.relu(self.hidden(features)))
        return logits
