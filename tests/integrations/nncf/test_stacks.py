"""ilwp with what else NNCF does, whatever order the config lists."""

import copy
import io
import itertools
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from ilwp_integrations.nncf import NNCFConfig, create_compressed_model
from nncf.common.quantization.structs import QuantizationScheme
from torch import nn

from ilwp_plugin import load
from ilwp_plugin.errors import ConfigError, TrainingError
from tests.integrations.nncf.helpers import (
    FILTERS,
    ILWP,
    INT8,
    MAGNITUDE,
    RB,
    SAFE_ENUMS,
    WHOLE,
    compressed,
    config_of,
    depthwise,
    images,
    network,
    optimizer_of,
    session_of,
    train,
)

HOOKED = (nn.modules.conv._ConvNd, nn.Linear)
STACKS = {
    "ilwp": (ILWP,),
    "magnitude": (ILWP, MAGNITUDE),
    "rb": (ILWP, RB),
    "filters": (ILWP, FILTERS),
    "int8": (ILWP, INT8),
    "all": (ILWP, FILTERS, MAGNITUDE, INT8),
}


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        pytest.param(name, list(order), id=f"{name}-{number}")
        for name, stack in STACKS.items()
        for number, order in enumerate([stack, stack[::-1]][: len(stack)])
    ],
)
def test_trained_stripped_saved_and_restored(name: str, sections: list[Any], tmp_path: Path) -> None:
    controller, model = compressed(sections)
    train(controller, model, optimizer_of(model))
    x = images()
    trained = model(x).detach()
    stripped = controller.strip().eval()
    out = stripped(x).detach()
    if INT8 in sections:
        # NNCF's conversion of activation quantizers rounds in another way: some values differ by a step of one.
        assert float((out - trained).abs().mean() / trained.abs().mean()) < 0.05
    else:
        torch.testing.assert_close(out, trained, rtol=0, atol=0)
    zeros = torch.cat([weight.flatten() for weight in depthwise(stripped).values()]).eq(0).double().mean()
    if MAGNITUDE in sections:
        assert zeros > 0.08, "half of all weights, of which the depthwise ones are the larger"
    elif "filters" not in name:
        assert zeros < 0.01

    ledger = controller.save_ilwp(tmp_path / "model.ilwp")
    assert ledger.file_bytes == (tmp_path / "model.ilwp").stat().st_size
    found = controller.statistics().ilwp
    assert found.ledger == ledger and found.quantizes and found.loss_weight == 3.0
    chained = [layer.details for layer in found.layers if layer.kind == "chain"]
    assert {details["mode"] for details in chained} <= {"anchor", "collocated", "none"}
    assert all(details.get("bits") in (4, None) for details in chained)
    assert str(ledger.file_bytes) in controller.statistics().to_str().replace(",", "")
    state = {name: tensor.clone() for name, tensor in stripped.state_dict().items()}
    for parameter in stripped.parameters():
        nn.init.zeros_(parameter)
    load(tmp_path / "model.ilwp").apply_to(stripped)
    assert all(torch.equal(tensor, state[name]) for name, tensor in stripped.state_dict().items())
    torch.testing.assert_close(stripped(x), out, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ilwp", "magnitude", "rb", "filters", "int8"])
@pytest.mark.parametrize("fields", [{}, {"weight_step": 0.05, "mode": "collocated"}], ids=["auto", "step"])
def test_every_layer_trains_with_what_the_file_holds(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    controller, model = compressed([{**WHOLE, **fields}, *STACKS[name][1:]])
    train(controller, model, optimizer_of(model))
    parts = session_of(controller).parts
    assert len(parts.keys) == sum(isinstance(m, HOOKED) for m in model.modules())
    trained, computed = model(images()).detach(), parts.reconstructed()
    assert all(torch.equal(parts.weight(key, w), w) for key, w in computed.items()), "on the grid"
    stripped = controller.strip().eval()
    for key, weight in computed.items():
        left = stripped.get_parameter(key).detach()
        if name == "filters":  # on 2.19 stripping sets what reads a pruned filter to 0, too
            weight = torch.where(left == 0, 0.0, weight)
        torch.testing.assert_close(left, weight, rtol=0, atol=0, msg=key)
    out = stripped(images()).detach()
    if name != "int8":  # NNCF's conversion of activation quantizers rounds in another way, see above
        assert float((out - trained).norm() / trained.norm()) < 0.1, "norms and biases are rounded"
    controller.save_ilwp(tmp_path / "model.ilwp")
    for parameter in stripped.parameters():
        nn.init.zeros_(parameter)
    file = load(tmp_path / "model.ilwp")
    file.apply_to(stripped)
    torch.testing.assert_close(stripped(images()), out, rtol=0, atol=0)
    weights = [key for key, tensor in file.state_dict().items() if key in computed]
    assert len(weights) == len(computed) and file.ledger.file_bytes < 300_000, "of 2.3 MB"
    if name == "magnitude":
        assert torch.cat([weight.flatten() for weight in computed.values()]).eq(0).double().mean() >= 0.5


@pytest.mark.parametrize(
    "fields",
    [{"mode": "auto"}, {"mode": "full"}, {"residual_step": 0.05, "rate_weight": 0.1}, {"anchor": "quantized"}],
    ids=str,
)
def test_every_way_to_quantize_trains_with_what_the_file_holds(fields: dict[str, Any], tmp_path: Path) -> None:
    controller, model = compressed({**ILWP, **fields})
    train(controller, model, optimizer_of(model))
    x = images()
    trained = model(x).detach()
    controller.save_ilwp(tmp_path / "model.ilwp")
    plain = network()
    load(tmp_path / "model.ilwp").apply_to(plain)
    torch.testing.assert_close(plain.eval()(x), trained, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["ilwp", "rb", pytest.param("all", marks=pytest.mark.skipif(not SAFE_ENUMS, reason="of this Python"))]
)
def test_resuming_goes_on_as_if_nothing_had_happened(name: str) -> None:
    controller, model = compressed(STACKS[name])
    optimizer = optimizer_of(model)
    train(controller, model, optimizer, [0])
    buffer = io.BytesIO()
    torch.save((model.state_dict(), controller.get_compression_state(), optimizer.state_dict()), buffer)
    train(controller, model, optimizer, [1, 2])

    buffer.seek(0)
    safe: list[Any] = [QuantizationScheme]  # what is in the state of NNCF beside plain values
    if find_spec("nncf.api") is not None:  # 2.19
        safe.append(import_module("nncf.api.compression").CompressionStage)
    with torch.serialization.safe_globals(safe):
        weights, state, steps = torch.load(buffer, weights_only=True)
    again, restored = compressed(STACKS[name], state=state)
    restored.load_state_dict(weights)
    optimizer = optimizer_of(restored)
    optimizer.load_state_dict(steps)
    train(again, restored, optimizer, [1, 2])
    ours, theirs = model.state_dict(), restored.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=0, atol=0, msg=key)
    torch.testing.assert_close(restored(images()), model(images()), rtol=0, atol=0)
    assert again.loss().item() == controller.loss().item()


def test_the_loss_falls() -> None:
    controller, model = compressed({**ILWP, "loss_weight": 2000.0, "bits": None})
    before = controller.statistics(quickly_collected_only=True).ilwp
    train(controller, model, optimizer_of(model), range(4), steps=4)
    after = controller.statistics(quickly_collected_only=True).ilwp
    assert after.inter_layer_loss < 0.8 * before.inter_layer_loss
    assert after.ledger is None, "quickly collected"


def test_quantization_starts_in_its_epoch(tmp_path: Path) -> None:
    params = {"quantization_start_epoch": 1, "loss_weight_schedule": [[0, 0.0], [2, 1.0]]}
    controller, model = compressed({**ILWP, "params": params})
    plain = copy.deepcopy(network()).eval()
    torch.testing.assert_close(model.eval()(images()), plain(images()), rtol=0, atol=0)
    assert controller.compression_stage() == 0 and controller.loss().item() == 0
    with pytest.raises(TrainingError, match="quantization_start_epoch is 1, and this is epoch 0"):
        controller.save_ilwp(tmp_path / "x.ilwp")
    train(controller, model, optimizer_of(model), [0, 1])
    assert controller.compression_stage() == 2 and controller.statistics().ilwp.loss_weight == 1.5
    trained = model(images()).detach()
    torch.testing.assert_close(controller.strip().eval()(images()), trained, rtol=0, atol=0)


def test_each_part_works_alone(tmp_path: Path) -> None:
    quantizer, _ = compressed({"algorithm": "ilwp", "loss_weight": 0, "bits": 3})
    assert quantizer.loss().item() == 0 and quantizer.statistics().ilwp.quantizes
    regularizer, model = compressed({**ILWP, "loss_weight": 1.0, "bits": None})
    assert regularizer.loss().item() > 0 and not regularizer.statistics().ilwp.quantizes
    torch.testing.assert_close(model.eval()(images()), network().eval()(images()), rtol=0, atol=0)
    assert regularizer.estimate_ilwp(bits=3).total_bytes < regularizer.estimate_ilwp().total_bytes
    estimator, _ = compressed({**ILWP, "loss_weight": 0, "bits": None})
    assert estimator.loss().item() == 0 and estimator.statistics().ilwp.ledger.texture_bytes > 0
    with pytest.raises(ConfigError, match="leave out bits"):
        quantizer.save_ilwp(tmp_path / "x.ilwp", bits=8)


def test_estimate_without_a_section_of_ours(tmp_path: Path) -> None:
    controller, _ = compressed({**MAGNITUDE})
    estimate = controller.estimate_ilwp(mode="none", bits=6)
    assert controller.save_ilwp(tmp_path / "x.ilwp", mode="none", bits=6) == estimate
    assert estimate.file_bytes == (tmp_path / "x.ilwp").stat().st_size


def test_masks_learn_faster_with_a_larger_multiplier() -> None:
    def moved(multiplier: float) -> float:
        controller, model = compressed([{**RB, "compression_lr_multiplier": multiplier}, INT8])
        masks = [p for name, p in model.named_parameters() if name.endswith("mask")]
        before = [mask.detach().clone() for mask in masks]
        train(controller, model, optimizer_of(model), [0], steps=1)
        assert masks
        return float(sum((m.detach() - b).abs().sum() for m, b in zip(masks, before, strict=True)))

    assert moved(50.0) == pytest.approx(50 * moved(1.0), rel=0.1)


def test_automatic_loss_weight() -> None:
    section = {"algorithm": "ilwp", "bits": 4}
    with pytest.raises(TrainingError, match='"training"'):
        compressed(section)
    training = {"steps": 400, "mean_lr": 0.05, "momentum": 0.9}
    controller, _ = compressed({**section, "params": {"training": training}})
    assert 1 < controller.statistics(quickly_collected_only=True).ilwp.loss_weight < 1000


def test_the_same_file_whatever_the_order() -> None:
    sizes = set()
    for order in itertools.permutations([ILWP, MAGNITUDE, INT8]):
        controller, model = compressed(list(order))
        train(controller, model, optimizer_of(model), [0], steps=1)
        sizes.add(controller.estimate_ilwp().total_bytes)
    assert len(sizes) == 1


def test_a_training_that_diverged_is_said_so(tmp_path: Path) -> None:
    controller, model = compressed([INT8, ILWP])
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, nn.Linear)).weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="classifier.weight': weights or scales are not finite; .*diverged"):
        controller.save_ilwp(tmp_path / "x.ilwp")


def test_export_to_onnx(tmp_path: Path) -> None:
    import onnx

    controller, _ = create_compressed_model(network(), config_of([INT8, ILWP]), dump_graphs=False)
    controller.export_model(str(tmp_path / "model.onnx"))
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "Conv" in kinds and not kinds & {"Round", "ScatterND", "ArgMin"}, "constants, not how they are computed"
    assert isinstance(config_of(ILWP), NNCFConfig)
