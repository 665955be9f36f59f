"""Small networks of the kinds that pruning finds hard."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilwp_plugin.testing import settle


def conv(c_in: int, c_out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU())


def separable(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(c_in, c_in, 3, stride, c_in), conv(c_in, c_out, 1))


class UNet(nn.Module):
    """Transposed convolutions and concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = conv(3, 16), separable(16, 16), separable(16, 32)
        self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.third, self.out = nn.Sequential(separable(32, 16), separable(16, 16)), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(self.stem(x))
        masks: Tensor = self.out(self.third(torch.cat([self.up(self.second(self.pool(a))), a], 1)))
        return masks


class Residual(nn.Module):
    """Dense convolutions only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.blocks = nn.ModuleList(nn.Sequential(conv(16, 16), conv(16, 16)) for _ in range(3))
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand, self.project = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.rand(channels) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(F.gelu(self.expand(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """7x7 kernels, layer norms, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), LayerNorm2d(16))
        self.first = nn.Sequential(*(ConvNeXtBlock(16) for _ in range(2)))
        self.down = nn.Sequential(LayerNorm2d(16), nn.Conv2d(16, 24, 2, 2))
        self.second = nn.Sequential(*(ConvNeXtBlock(24) for _ in range(2)))
        self.norm, self.classifier = nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.down(self.first(self.stem(x))))
        logits: Tensor = self.classifier(self.norm(x.mean((2, 3))))
        return logits


def shuffle(x: Tensor, groups: int = 2) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """As torchvision has it: halves by `chunk`, a shuffle by `view`."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, c_out // 2
        own = c_in if stride > 1 else c_in // 2
        self.side = nn.Sequential()
        if stride > 1:
            self.side = nn.Sequential(
                nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False), nn.BatchNorm2d(c_in), conv(c_in, half, 1)
            )
        self.main = nn.Sequential(
            conv(own, half, 1),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            kept, rest = x.chunk(2, dim=1)
            return shuffle(torch.cat((kept, self.main(rest)), dim=1))
        return shuffle(torch.cat((self.side(x), self.main(x)), dim=1))


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.units = nn.Sequential(
            ShuffleUnit(16, 32, 2), ShuffleUnit(32, 32, 1), ShuffleUnit(32, 64, 2), ShuffleUnit(64, 64, 1)
        )
        self.classifier = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.units(self.stem(x)).mean((2, 3)))
        return logits


def settled(kind: type[nn.Module], example: Tensor) -> nn.Module:
    """A network with random norms, in eval mode."""
    torch.manual_seed(0)
    model = kind()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return settle(model, example)
