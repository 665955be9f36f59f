"""Statistics tell what there is, and never raise; what cannot be saved is refused when the model is built."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import load
from ilwp_plugin.errors import IlwpError
from ilwp_plugin.testing import settle
from tests.integrations.nncf.architectures import ResNet
from tests.integrations.nncf.helpers import (
    ILWP,
    INT8,
    MAGNITUDE,
    WHOLE,
    compressed,
    images,
    network,
    optimizer_of,
    train,
)

LEGACY = version("nncf").startswith("2.")


class Twice(nn.Module):
    """A depthwise module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.two = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(torch.relu(self.one(torch.relu(self.one(torch.relu(self.first(x))))))))
        return self.classifier(self.norm(x).mean((2, 3)))


@pytest.mark.parametrize("sections", [[INT8], [INT8, ILWP], [INT8, WHOLE], [MAGNITUDE, WHOLE]], ids=len)
def test_a_module_that_runs_twice(sections: list[Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    controller, model = compressed(sections, settle(Twice(), images()))
    train(controller, model, optimizer_of(model), [0])
    assert controller.statistics().to_str() or sections == [INT8]
    controller.save_ilwp(tmp_path / "model.ilwp")
    stripped = controller.strip().eval()
    outputs = stripped(images()).detach()
    load(tmp_path / "model.ilwp").apply_to(stripped)
    torch.testing.assert_close(stripped(images()), outputs, rtol=0, atol=0.01 if sections == [INT8] else 0)


def test_a_network_without_depthwise_layers_has_a_file_without_a_section_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settle(ResNet(), images(8, 3, 32))
    controller, _ = compressed([MAGNITUDE], model, shape=(2, 3, 32, 32))
    sizes = [
        controller.save_ilwp(tmp_path / "model.ilwp", **fields).file_bytes
        for fields in ({}, {"mode": "none"}, {"scope": "conv"})
    ]
    assert max(sizes) < 8_000, "of 15 KB, half of it zeros"


@pytest.mark.skipif(not LEGACY, reason="NNCF 3 has neither")
@pytest.mark.parametrize(
    "sections",
    [
        [{**INT8, "weights": {"bits": 4}, "activations": {"bits": 4}}],
        [{"algorithm": "knowledge_distillation", "type": "mse"}],
        [{"algorithm": "knowledge_distillation", "type": "mse"}, INT8],
    ],
    ids=["4 bits", "distillation", "distillation and int8"],
)
def test_what_has_no_size_says_so(sections: list[Any], tmp_path: Path) -> None:
    controller, model = compressed([*sections, ILWP], target_device="TRIAL")
    train(controller, model, optimizer_of(model), [0], steps=1)
    found = controller.statistics()
    assert controller.statistics(quickly_collected_only=True).ilwp.ledger is None
    if sections[0]["algorithm"] == "quantization":
        assert found.ilwp.ledger is None and "num_bits" in found.ilwp.why_no_sizes
        assert "no sizes: NNCF cannot strip this model" in found.to_str()
        with pytest.raises(IlwpError, match="num_bits"):
            controller.save_ilwp(tmp_path / "model.ilwp")
    else:
        assert found.ilwp.ledger == controller.save_ilwp(tmp_path / "model.ilwp")
        plain = network()
        load(tmp_path / "model.ilwp").apply_to(plain), "the teacher is not in the file"
        copied = controller.strip(do_copy=True)
        assert not any("kd_original" in name for name in copied.state_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"align": True}, "align=True"),
        ({"overrides": {"features.99": {"bits": 4}}}, "overrides.*features.99"),
        ({"layers": ["features.99"]}, "features.99"),
        ({"target_scopes": ["nothing"]}, "target_scopes.*nothing"),
        ({"step_allocation": "measured", "params": {"calibration_samples": 0}}, "measured"),
        ({"dead_zone": 0.7}, None),
        ({"batch_norm": "merged"}, None),
    ],
)
def test_fields_that_cannot_work_are_refused_when_the_model_is_built(fields: Any, message: str | None) -> None:
    if message is not None:
        with pytest.raises(IlwpError, match=message):
            compressed({**WHOLE, **fields})
        return
    controller, _ = compressed({**WHOLE, **fields})
    assert controller.estimate_ilwp() == controller.statistics().ilwp.ledger
