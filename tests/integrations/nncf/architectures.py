"""Networks with the structure of those that NNCF's published configs name, small enough for tests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2dNormActivation(nn.Sequential):
    """The class names are those of torchvision: configs name layers by them."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        expand = [Conv2dNormActivation(c_in, hidden, 1)] if expansion > 1 else []
        depthwise = Conv2dNormActivation(hidden, hidden, 3, stride, hidden)
        self.conv = nn.Sequential(*expand, depthwise, nn.Conv2d(hidden, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
        self.use_res_connect = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [InvertedResidual(*block) for block in ((8, 8, 1, 1), (8, 12, 2, 3), (12, 12, 1, 3), (12, 16, 2, 3))]
        self.features = nn.Sequential(Conv2dNormActivation(3, 8, 3, 2), *blocks, Conv2dNormActivation(16, 32, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x))))) * x


class MobileNetV3(nn.Module):
    """Kernels of 3x3 and 5x5, squeeze and excitation, hard swish."""

    def __init__(self) -> None:
        super().__init__()

        def block(c_in: int, hidden: int, c_out: int, kernel: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Sequential(nn.Conv2d(c_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish()),
                nn.Sequential(
                    nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
                    nn.BatchNorm2d(hidden),
                    nn.Hardswish(),
                ),
                SqueezeExcitation(hidden),
                nn.Sequential(nn.Conv2d(hidden, c_out, 1, bias=False), nn.BatchNorm2d(c_out)),
            )

        blocks = ((8, 16, 8, 3, 1), (8, 24, 12, 5, 2), (12, 24, 12, 3, 1), (12, 32, 16, 5, 1), (16, 32, 16, 5, 2))
        self.features = nn.Sequential(Conv2dNormActivation(3, 8, 3, 2), *(block(*b) for b in blocks))
        self.classifier = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class SsdMobileNet(nn.Module):
    """A backbone of depthwise separable convolutions, and heads on two of its maps."""

    def __init__(self) -> None:
        super().__init__()

        def separable(c_in: int, c_out: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                Conv2dNormActivation(c_in, c_in, 3, stride, c_in), Conv2dNormActivation(c_in, c_out, 1)
            )

        self.basenet = nn.Sequential(Conv2dNormActivation(3, 8, 3, 2), separable(8, 16, 1), separable(16, 16, 2))
        self.extras = nn.Sequential(separable(16, 32, 1), separable(32, 32, 2))
        self.loc = nn.ModuleList([nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(32, 8, 3, padding=1)])
        self.conf = nn.ModuleList([nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(32, 6, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.basenet(x)
        maps = (first, self.extras(first))
        return torch.cat([h(m).flatten(1) for hs in (self.loc, self.conf) for h, m in zip(hs, maps, strict=True)], 1)


class ResNet(nn.Module):
    """No depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(2)
        )
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for block in self.layer1:
            x = F.relu(x + block(x))
        return self.fc(x.mean(dim=(2, 3)))
