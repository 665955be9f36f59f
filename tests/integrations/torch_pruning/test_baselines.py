"""torch-pruning's method of a comparison: files, restored outputs, sizes, options, resumption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ilwp_integrations.torch_pruning import baselines
from torch import nn

from ilwp_plugin import load
from ilwp_plugin.compare.baselines import int8_weights
from ilwp_plugin.compare.methods import Case, find_method
from ilwp_plugin.errors import ConfigError, TensorError
from ilwp_plugin.models.tensors import restored
from ilwp_plugin.training.loop import Loop
from tests.integrations.comparing import check_that_all_comes_from_the_file, outputs_of, run, small_case

ILWP = {"preset": "paper", "bits": 4, "anchor": "quantized", "loss_weight": 2.0}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return small_case(tmp_path)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models in memory that files are made of."""
    seen: list[nn.Module] = []
    original = baselines.raw_sizes
    monkeypatch.setattr(baselines, "raw_sizes", lambda c, model: seen.append(model) or original(c, model))
    return seen


@pytest.mark.parametrize("ilwp", [None, ILWP, {**ILWP, "align": True}], ids=["alone", "families", "aligned"])
def test_the_file_alone_restores_the_pruned_model(case: Case, models: list[Any], ilwp: Any) -> None:
    outcome = run(case, "pruning.magnitude", epochs=1, weight_bits=None, ilwp=ilwp)
    assert torch.equal(outcome.outputs, outputs_of(models[0], case))
    assert bool(load(case.folder / "model").provenance) == (ilwp is ILWP), "aligned kernels have new references"
    pruned = dict(outcome.restored.named_modules())["features.3"]
    assert pruned.groups == pruned.out_channels == 16


def test_stacked(case: Case, models: list[Any], tmp_path: Path) -> None:
    alone = run(case, "pruning.magnitude", epochs=2)
    stacked = run(small_case(tmp_path / "b"), "pruning.magnitude", epochs=2, ilwp=ILWP)
    assert stacked.depthwise_bytes < 0.6 * alone.depthwise_bytes
    assert stacked.ledger.file_bytes < alone.ledger.file_bytes
    assert min(alone.percent, stacked.percent) > 60
    # 16 channels are left of 32: codes of 8 bits with a scale a channel, or of 4 with a step a layer
    assert alone.compressed.raw_depthwise_bytes == 3 * (16 * 9 + 4 * 16)
    assert stacked.compressed.raw_depthwise_bytes == 3 * (16 * 9 // 2 + 4)
    # the model in memory has the weights before they are rounded to 8 bits
    rounded = {name: restored(value) for name, value in int8_weights(models[0]).items()}
    models[0].load_state_dict({**models[0].state_dict(), **rounded})
    assert torch.equal(alone.outputs, outputs_of(models[0], case))


def test_recovered_first_and_calibrated(case: Case, tmp_path: Path) -> None:
    """A pruned network is trained on as it is before its weights are rounded: what pruning broke is mended faster."""
    ilwp = {"weight_step": 0.05, "rate": 0.1}
    first = run(case, "pruning.magnitude", epochs=2, recovery=1, calibration=64, ilwp=ilwp)
    assert first.percent > 60
    at_once = run(small_case(tmp_path / "b"), "pruning.magnitude", epochs=2, calibration=64, ilwp=ilwp)
    assert first.ledger.file_bytes != at_once.ledger.file_bytes
    with pytest.raises(ConfigError, match="recovery: 2 of 2 epochs"):
        run(case, "pruning.magnitude", epochs=2, recovery=2, ilwp=ilwp)
    with pytest.raises(ConfigError, match="recovery"):
        run(case, "pruning.magnitude", epochs=2, recovery=1)


def test_all_comes_from_the_file(tmp_path: Path) -> None:
    check_that_all_comes_from_the_file(tmp_path, "pruning.magnitude", epochs=1)


def test_resumes(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = run(case, "pruning.magnitude", epochs=2)
    other, written = small_case(tmp_path / "b"), []

    def stop(*arguments: Any) -> None:
        keep(*arguments)
        written.append(arguments)
        raise KeyboardInterrupt

    keep = Loop.save
    monkeypatch.setattr(Loop, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(other, "pruning.magnitude", epochs=2)
    monkeypatch.setattr(Loop, "save", keep)
    again = run(other, "pruning.magnitude", epochs=2)
    assert len(written) == 1
    assert (other.folder / "model").read_bytes() == (case.folder / "model").read_bytes()
    assert torch.equal(again.outputs, whole.outputs)


def test_errors(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    method = find_method("pruning.magnitude")
    for wrong, message in (
        ({"rate": 0.5}, "rate.*ratio"),
        ({"ratio": 1.0}, "ratio"),
        ({"weight_bits": 4}, "weight_bits"),
        ({"ilwp": {"bits": 9}}, "bits"),
    ):
        with pytest.raises(ConfigError, match=message):
            method.options.from_dict(wrong)
    with pytest.raises(ConfigError, match="quantizes nothing"):
        method.compress(case, method.options.from_dict({"ilwp": {"preset": "paper", "bits": None}}))

    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("index 9 is out of bounds")

    monkeypatch.setattr(baselines.IlwpPruner, "step", fail)
    with pytest.raises(TensorError, match="cannot take 50% of the channels out of Network.*index 9"):
        method.compress(case, method.options.from_dict({}))
