"""NNCF 2's scopes on NNCF 3: operations, modules and containers by their names, and what names nothing."""

from typing import Any

import pytest
import torch
from ilwp_integrations.nncf.modern.operations import Operations
from nncf.torch.function_hook.wrapper import get_hook_storage
from torch import Tensor, nn

from ilwp_plugin.errors import ConfigError
from tests.integrations.nncf.architectures import MobileNetV2, ResNet
from tests.integrations.nncf.helpers import ILWP, INT8, MAGNITUDE, compressed

SHAPE = (2, 3, 32, 32)
EXAMPLE = torch.zeros(1, 3, 32, 32)
BLOCK = "MobileNetV2/Sequential[features]/InvertedResidual[3]"


class Operators(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.two(x)
        c = torch.cat([a + b, a * b], 1)
        c += 1
        return c.mean((2, 3))


@pytest.mark.parametrize(
    ("make", "pattern", "nodes"),
    [
        (Operators, "Operators/cat_0", ["/cat/0"]),
        (Operators, "{re}.*cat.*", ["/cat/0"]),
        (Operators, "Operators/__add___0", ["/add/0"]),
        (Operators, "{re}.*__i?add__.*", ["/add/0", "/add_/0"]),
        (Operators, "{re}__mul__", ["/mul/0"]),
        (Operators, "Operators/NNCFConv2d[one]/conv2d_0", ["one/conv2d/0"]),
        (Operators, "Operators/Conv2d[one]", ["one/conv2d/0"]),
        (Operators, "one", ["one/conv2d/0"]),
        (Operators, "{re}conv2d_0$", ["one/conv2d/0", "two/conv2d/0"]),
        (MobileNetV2, f"{BLOCK}/__add___0", ["features/3/add/0"]),
        (MobileNetV2, "features.0", ["features/0/0/conv2d/0", "features/0/1/batch_norm/0", "features/0/2/hardtanh/0"]),
        (MobileNetV2, "{re}features\\.0", None),
        (MobileNetV2, "{re}.*ReLU6.*", None),
        (ResNet, "ResNet/ModuleList[layer1]/Sequential[1]/NNCFConv2d[3]/conv2d_0", ["3/conv2d/1"]),
    ],
)
def test_names(make: Any, pattern: str, nodes: list[str] | None) -> None:
    found = Operations(make(), EXAMPLE).match(pattern)
    assert found == nodes if nodes is not None else len(found) > 2


@pytest.mark.parametrize("scope", ["{re}.*InvertedResidual\\[2\\].*", "features.2", f"{BLOCK[:-3]}[2]"])
@pytest.mark.parametrize("section", [MAGNITUDE, INT8], ids=["masks", "int8"])
def test_scopes_of_containers(section: Any, scope: str) -> None:
    _controller, model = compressed([{**section, "ignored_scopes": [scope]}], MobileNetV2(), shape=SHAPE)
    names = [name for name, _ in get_hook_storage(model).named_hooks()]  # those of weights
    assert any("pre_hooks.features/3/" in name or "features:3:" in name for name in names)
    assert not any("pre_hooks.features/2/" in name or "features:2:" in name for name in names)


def test_targets_are_what_is_left() -> None:
    targeted = {**MAGNITUDE, "target_scopes": ["features.3", f"{BLOCK[:-3]}[4]"]}
    _, model = compressed([targeted], MobileNetV2(), shape=SHAPE)
    names = [name for name, _ in get_hook_storage(model).named_hooks()]
    assert names and all("features:3:" in name or "features:4:" in name for name in names)


def test_weights_alone_can_be_left_out() -> None:
    section = {**INT8, "weights": {"ignored_scopes": ["features.3"]}}
    _, model = compressed([section], MobileNetV2(), shape=SHAPE)
    names = [name for name, _ in get_hook_storage(model).named_hooks()]
    assert not any("pre_hooks.features/3" in name for name in names)
    assert any("post_hooks.features/3" in name for name in names), "activations are quantized"


def test_all_that_names_nothing_is_said_at_once() -> None:
    sections = [{**MAGNITUDE, "ignored_scopes": ["nothing"]}, {**INT8, "ignored_scopes": ["MobileNetV2/dog_0"]}]
    with pytest.raises(ConfigError, match="magnitude_sparsity: ignored_scopes: 'nothing'.*quantization:.*dog_0"):
        compressed([*sections, ILWP], MobileNetV2(), shape=SHAPE)
    with pytest.raises(ConfigError, match="not a regular expression"):
        compressed([{**INT8, "ignored_scopes": ["{re}*"]}], MobileNetV2(), shape=SHAPE)
    compressed([{**INT8, "ignored_scopes": ["nothing"], "validate_scopes": False}], MobileNetV2(), shape=SHAPE)
