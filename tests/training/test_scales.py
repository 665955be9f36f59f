"""Distillation of scales: codes stay, outputs come closer."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import CompressedModel, IlwpConfig, compress, loads
from ilwp_plugin.errors import FileError, TensorError, TrainingError
from ilwp_plugin.format.sections import BatchNormSection
from ilwp_plugin.training import FineTuning, Progress, distill_scales, output_error

from . import fine_tuning_process as process
from .test_fine_tuning import Killed, kill_at, same

PLAN = FineTuning(epochs=8, batch=16, lr=5e-3)


@pytest.fixture
def model() -> nn.Module:
    return process.network(norms=True).float().eval()


@pytest.fixture
def images() -> Tensor:
    return process.data().tensors[0].float()


@pytest.fixture
def coarse(model: nn.Module, images: Tensor) -> CompressedModel:
    return compress(model, IlwpConfig(mode="collocated", weight_step=0.04), calibration=images)


def error(model: nn.Module, compressed: CompressedModel, images: Tensor) -> float:
    restored = copy.deepcopy(model)
    loads(compressed.to_bytes()).apply_to(restored)
    with torch.no_grad():
        return float(output_error(restored(images), model(images)))


def codes(compressed: CompressedModel) -> dict[str, Any]:
    found = {name: value.codes for name, value in compressed.quantized.items() if value.codes.ndim > 1}
    for chain in compressed.chains:
        found |= {layer.info.name: layer.quantized.codes for layer in chain.layers if layer.quantized is not None}
    return found


def test_outputs_come_closer_and_codes_stay(model: nn.Module, images: Tensor, coarse: CompressedModel) -> None:
    before = copy.deepcopy(model.state_dict())
    seen: list[Progress] = []
    distilled = distill_scales(model, coarse, images, PLAN, report=seen.append)
    assert error(model, distilled, images) < 0.8 * error(model, coarse, images)
    assert list(codes(coarse)) == list(codes(distilled)) and len(codes(coarse)) == 8
    assert all(np.array_equal(own, codes(distilled)[name]) for name, own in codes(coarse).items())
    assert same(dict(before), dict(model.state_dict())) and not model.training
    assert abs(len(distilled.to_bytes()) - len(coarse.to_bytes())) < 0.05 * len(coarse.to_bytes())
    assert seen[-1].step == seen[-1].steps == 40
    assert seen[-1].loss == pytest.approx(error(model, distilled, images), rel=0.3), "of rounded scales"


def test_fewer_bits_of_norms(model: nn.Module, images: Tensor, coarse: CompressedModel) -> None:
    """The file is smaller, and better than one that was compressed with so few bits."""
    plain = compress(model, IlwpConfig(mode="collocated", weight_step=0.04, batch_norm_bits=2), calibration=images)
    distilled = distill_scales(model, coarse, images, PLAN, norm_bits=2)
    (section,) = [section for section in distilled.sections if isinstance(section, BatchNormSection)]
    assert {value.mantissa for value in section.values} == {2}
    assert distilled.ledger.batch_norm_bytes < coarse.ledger.batch_norm_bytes
    assert error(model, distilled, images) < error(model, plain, images)


def test_resumed_distillation_ends_with_the_same_bytes(
    tmp_path: Path, model: nn.Module, images: Tensor, coarse: CompressedModel
) -> None:
    path, whole = tmp_path / "scales.pt", distill_scales(model, coarse, images, PLAN)
    with pytest.raises(Killed):
        distill_scales(model, coarse, images, PLAN, checkpoint=path, report=kill_at(23))
    assert distill_scales(model, coarse, images, PLAN, checkpoint=path).to_bytes() == whole.to_bytes()
    with pytest.raises(TrainingError, match="another run; its epochs: 8, now: 1"):
        distill_scales(model, coarse, images, FineTuning(epochs=1, batch=16, lr=5e-3), checkpoint=path)
    path.write_bytes(b"x")
    with pytest.raises(FileError, match="no checkpoint of a distillation of scales"):
        distill_scales(model, coarse, images, PLAN, checkpoint=path)


def test_batches_of_several_things_and_another_loss(model: nn.Module, coarse: CompressedModel) -> None:
    """The data set gives labels, too, in float64."""
    seen: list[Tensor] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return output_error(outputs, targets)

    distill_scales(
        model, coarse, process.data(), FineTuning(epochs=1, batch=40), loss=loss, inputs=lambda batch: batch[0].float()
    )
    assert [len(targets) for targets in seen] == [40, 40] and not seen[0].requires_grad


def test_what_cannot_be_distilled(model: nn.Module, images: Tensor, coarse: CompressedModel) -> None:
    with pytest.raises(TensorError, match="does not fit"):
        distill_scales(nn.Linear(3, 3), coarse, images, PLAN)
    with pytest.raises(TrainingError, match="no scale to train"):
        distill_scales(model, compress(model, "lossless"), images, PLAN)
    with pytest.raises(TrainingError, match="norm_bits=0: expected 1 to 12"):
        distill_scales(model, coarse, images, PLAN, norm_bits=0)
    with pytest.raises(TrainingError, match="the loss is nan"):
        distill_scales(model, coarse, images * float("nan"), PLAN)
