"""`IlwpConfig(align=True)` inside `compress` and `fine_tune`."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ilwp_integrations.torch_pruning import align
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress, estimate
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.training import FakeQuantizer, FineTuning, fine_tune


def test_compress_aligns_a_copy(mobilenet: nn.Module, images: Tensor) -> None:
    mobilenet.eval()
    before = copy.deepcopy(mobilenet.state_dict())
    config = IlwpConfig.paper(bits=5, align=True)
    compressed = compress(mobilenet, config, example_inputs=images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mobilenet.state_dict().items())
    assert len(compressed.alignment.aligned) == 13 and not compressed.alignment.refused

    by_hand = copy.deepcopy(mobilenet)
    align(by_hand, images, config)
    assert compressed.to_bytes() == compress(by_hand, config.replace(align=False)).to_bytes()
    assert compressed.ledger.total_bytes < estimate(mobilenet, IlwpConfig.paper(bits=5)).total_bytes


def test_fine_tuning_aligns(mobilenet: nn.Module, images: Tensor) -> None:
    data = torch.utils.data.TensorDataset(images, torch.arange(4))
    result = fine_tune(
        mobilenet,
        data,
        lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        {"bits": 4, "align": True},
        FineTuning(epochs=2, batch=4),
        example_inputs=images,
    )
    assert result.alignment is not None and len(result.alignment.aligned) == 13


def test_errors(mobilenet: nn.Module, images: Tensor) -> None:
    with pytest.raises(ConfigError, match="needs the module itself and example_inputs.* got a MobileNet without them"):
        compress(mobilenet, {"align": True})
    with pytest.raises(ConfigError, match="got a OrderedDict"):
        compress(mobilenet.state_dict(), {"align": True}, example_inputs=images)
    with pytest.raises(ConfigError, match="give no references or codes"):
        compress(mobilenet, {"align": True}, example_inputs=images, references={"x": torch.zeros(1)})
    with pytest.raises(ConfigError, match="align the model first"):
        FakeQuantizer(mobilenet, IlwpConfig(align=True))
    with pytest.raises(ConfigError, match="mode 'collocated'"):
        compress(mobilenet, {"align": True, "mode": "full"}, example_inputs=images)


def test_absent_toolkit_is_named(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch_pruning'] = None\n"
        "import torch; from ilwp_plugin import compress; from ilwp_plugin.zoo import build_model\n"
        "compress(build_model('mobilenet', width=.25), {'align': True}, example_inputs=torch.randn(1, 3, 32, 32))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "MissingDependencyError: integration 'pruning' cannot be imported" in done.stderr
    assert "pip install 'ilwp-plugin[pruning]'" in done.stderr
