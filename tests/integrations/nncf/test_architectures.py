"""Real structures of networks, and of the configs that NNCF publishes for them, with our section appended."""

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ilwp_plugin import load
from ilwp_plugin.errors import ChainError, ConfigError, TrainingError
from ilwp_plugin.testing import settle
from ilwp_plugin.zoo import build_model
from tests.integrations.nncf.architectures import MobileNetV2, MobileNetV3, ResNet, SsdMobileNet
from tests.integrations.nncf.helpers import ILWP, compressed, images, optimizer_of

LEGACY = version("nncf").startswith("2.")
SHAPE = (2, 3, 32, 32)


def built(make: Any) -> nn.Module:
    torch.manual_seed(0)
    return settle(make(), images(8, 3, 32))


NETWORKS = {
    "mobilenetv2": (lambda: build_model("mobilenetv2", width=0.25, stem_stride=2), {}),
    "mobilenetv3": (MobileNetV3, {}),
    "shufflenetv2": (lambda: build_model("shufflenetv2", width=0.25, stem_stride=2), {}),
    "resnet": (ResNet, {"scope": "conv"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_builds_trains_strips_and_saves(name: str, tmp_path: Path) -> None:
    make, fields = NETWORKS[name]
    plain = built(make)
    controller, model = compressed({**ILWP, **fields}, copy.deepcopy(plain), shape=SHAPE)
    optimizer, x = optimizer_of(model), images(8, 3, 32)
    model.train()
    controller.scheduler.epoch_step()
    (model(x).square().mean() + controller.loss()).backward()
    optimizer.step()
    trained = model.eval()(x).detach()
    torch.testing.assert_close(controller.strip().eval()(x), trained, rtol=0, atol=0)
    controller.save_ilwp(tmp_path / "model.ilwp")
    load(tmp_path / "model.ilwp").apply_to(plain)
    torch.testing.assert_close(plain.eval()(x), trained, rtol=0, atol=0)


def test_a_network_without_depthwise_layers_is_refused() -> None:
    with pytest.raises(ChainError, match="conv1: not depthwise.*scope='conv' takes every kernel larger than 1x1"):
        compressed(ILWP, built(ResNet), shape=SHAPE)


INT8 = {"algorithm": "quantization", "initializer": {"range": {"num_init_samples": 8}}}
RB = {
    "algorithm": "rb_sparsity",
    "sparsity_init": 0.01,
    "params": {"sparsity_target": 0.52, "sparsity_target_epoch": 5, "sparsity_freeze_epoch": 10},
}
PUBLISHED: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "v2_int8": (MobileNetV2, [INT8]),
    "v2_int8_asymmetric": (
        MobileNetV2,
        [{**INT8, "activations": {"mode": "asymmetric"}, "weights": {"mode": "asymmetric"}}],
    ),
    "v2_int8_per_tensor": (
        MobileNetV2,
        [
            {
                "algorithm": "quantization",
                "initializer": {
                    "range": {"num_init_samples": 8},
                    "batchnorm_adaptation": {"num_bn_adaptation_samples": 8},
                },
                "weights": {"per_channel": False},
                "activations": {"per_channel": False},
            }
        ],
    ),
    "v2_rb_sparsity": (MobileNetV2, [RB]),
    "v2_rb_sparsity_int8": (
        MobileNetV2,
        [
            {
                **RB,
                "ignored_scopes": [
                    "{re}MobileNetV2/Sequential\\[features\\]/Conv2dNormActivation\\[0\\]/NNCFConv2d\\[0\\]/.*"
                ],
            },
            {"algorithm": "quantization", "initializer": {"range": {"num_init_samples": 8, "type": "min_max"}}},
        ],
    ),
    "v3_int8": (
        MobileNetV3,
        [
            {
                "algorithm": "quantization",
                "preset": "mixed",
                "initializer": {
                    "range": {"num_init_samples": 8, "type": "mean_percentile"},
                    "batchnorm_adaptation": {"num_bn_adaptation_samples": 8},
                },
                "weights": {"bits": 8, "per_channel": True},
                "activations": {"bits": 8, "per_channel": False},
            }
        ],
    ),
    "ssd_magnitude_int8": (
        SsdMobileNet,
        [
            {
                "algorithm": "magnitude_sparsity",
                "sparsity_init": 0.3,
                "params": {
                    "schedule": "multistep",
                    "multistep_sparsity_levels": [0.3, 0.5, 0.7],
                    "multistep_steps": [40, 80],
                },
            },
            {"algorithm": "quantization"},
        ],
    ),
}
SSD_ADAPTIVE = [
    {
        "algorithm": "rb_sparsity",
        "sparsity_init": 0.3,
        "params": {
            "schedule": "adaptive",
            "sparsity_target": 0.9,
            "sparsity_target_epoch": 300,
            "sparsity_freeze_epoch": 300,
        },
    },
    {"algorithm": "quantization"},
]
PUBLISHED["ssd_rb_adaptive_int8"] = (SsdMobileNet, SSD_ADAPTIVE)
PUBLISHED["v2_const_sparsity_int8"] = (MobileNetV2, [{"algorithm": "const_sparsity"}, INT8])
ONLY_LEGACY: dict[str, tuple[Any, list[dict[str, Any]], str]] = {
    "v2_mixed_4bit": (
        MobileNetV2,
        [{**INT8, "weights": {"mode": "asymmetric", "per_channel": True, "bits": 4}}],
        "quantization of 4 bits cannot be mapped",
    ),
}


def _scope(number: int, layer: str) -> str:
    return f"MobileNetV2/Sequential[features]/InvertedResidual[{number}]/Sequential[conv]/{layer}/conv2d_0|WEIGHT"


BITS_BY_HAND = {
    "algorithm": "quantization",
    "weights": {"mode": "asymmetric", "per_channel": True, "bits": 4},
    "initializer": {
        "range": {"num_init_samples": 8},
        "precision": {
            "type": "manual",
            "bitwidth_per_scope": [
                [8, _scope(2, "Conv2dNormActivation[0]/NNCFConv2d[0]")],
                [8, _scope(2, "Conv2dNormActivation[1]/NNCFConv2d[0]")],
            ],
        },
    },
}
"""The second one is a depthwise layer, whose weights ilwp quantizes."""
ONLY_LEGACY["v2_bits_by_hand"] = (MobileNetV2, [BITS_BY_HAND], "for NNCF 3: unknown key 'initializer.precision'")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_build_with_our_section_appended(name: str) -> None:
    make, sections = PUBLISHED[name]
    extra = {"optimizer": {"type": "Adam", "base_lr": 1e-5}, "epochs": 5, "num_classes": 8}
    controller, model = compressed([*sections, ILWP], built(make), shape=SHAPE, **extra)
    model.eval()
    out = model(images(8, 3, 32)).detach()
    assert bool(out.isfinite().all()) and controller.loss().item() > 0
    weights = controller.strip().state_dict()
    before = built(make).state_dict()
    changed = [
        k for k in before if k.endswith("weight") and before[k].dim() == 4 and not torch.equal(before[k], weights[k])
    ]
    assert changed, "depthwise layers hold reconstructed weights"


@pytest.mark.parametrize("name", ONLY_LEGACY)
def test_what_nncf_3_cannot_do_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, sections, message = ONLY_LEGACY[name]
    if not LEGACY:
        with pytest.raises(ConfigError, match=message):
            compressed([*sections, ILWP], built(make), shape=SHAPE)
        return
    target = {"target_device": "TRIAL"} if "bit" in name else {}
    controller, model = compressed([*sections, ILWP], built(make), shape=SHAPE, **target)
    assert bool(model.eval()(images(8, 3, 32)).isfinite().all()) and controller.loss().item() > 0
    with pytest.raises(TrainingError, match="NNCF cannot strip this model.*num_bits"):
        controller.save_ilwp(tmp_path / "x.ilwp")
