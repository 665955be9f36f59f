"""Fine-tuning with a rate term, and the targets that steer it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ilwp_plugin import IlwpConfig, load
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.training import FakeQuantizer, FineTuning, Progress, fine_tune

from . import fine_tuning_process as process
from .test_fine_tuning import Killed, checkpoint, folders, kill_at, same, start

TARGET = 740.0
"""Bytes; the file takes 850 without a rate, and 440 without codes."""


def run(folder: Path, **options: Any) -> tuple[nn.Module, Any]:
    return process.run(folder, True, process.WITH_RATE, **options)


@pytest.mark.parametrize("kill", [1, 13, 26], ids=lambda step: f"after step {step}")
def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, kill: int) -> None:
    """The models of the codes, the size, what steers the rate, and the last part, in which norms train alone."""
    whole, broken = folders(tmp_path, "whole", "broken")
    run(whole, target_bytes=TARGET)
    with pytest.raises(Killed):
        run(broken, target_bytes=TARGET, report=kill_at(kill))
    run(broken, target_bytes=TARGET)
    assert same(checkpoint(whole), checkpoint(broken))
    assert (whole / "model.ilwp").read_bytes() == (broken / "model.ilwp").read_bytes()


def test_two_processes(tmp_path: Path) -> None:
    """Both steer alike, and restore what the file holds."""
    finished = start(tmp_path, "--norms", "--target-bytes", TARGET, processes=2)
    assert finished.returncode == 0, finished.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert same(dict(ranks[0]), dict(ranks[1]))
    assert same(load(tmp_path / "model.ilwp").state_dict(), dict(ranks[0]))
    assert (tmp_path / "model.ilwp").stat().st_size <= TARGET


@pytest.mark.parametrize("target", [800, 700])
def test_target_bytes(tmp_path: Path, target: int) -> None:
    seen: list[Progress] = []
    run(tmp_path, target_bytes=target, report=seen.append)
    assert 0.9 * target < (tmp_path / "model.ilwp").stat().st_size <= target
    last = seen[-1]
    assert last.file_bytes == pytest.approx(target, rel=0.1) and last.step == last.steps == len(seen)
    assert f"{last.bits_per_weight:.3f} bits a weight, {last.file_bytes:,} bytes" in str(last)


def test_the_gauge_is_the_size_of_the_file(tmp_path: Path) -> None:
    seen: list[Progress] = []
    _, result = run(tmp_path, report=seen.append)
    assert seen[-1].file_bytes == pytest.approx(result.compressed.ledger.file_bytes, rel=0.1)


def test_more_rate_makes_smaller_files(tmp_path: Path) -> None:
    sizes = []
    for number, rate in enumerate((0.1, 3.0, 30.0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, result = process.run(folder, True, process.WITH_RATE.replace(rate=rate))
        sizes.append(result.compressed.ledger.file_bytes)
    assert sizes[0] > sizes[1] > 1.05 * sizes[2], sizes


def test_codes_of_chains_have_a_rate() -> None:
    """A bit of a residual costs as much as one of any other weight, and pulls the weight towards what predicts it."""
    quantizer = FakeQuantizer(process.network(norms=True), process.WITH_RATE)
    parts = quantizer.parts
    assert len(parts.parts) == 2 and all(part.levels() for part in parts.parts)
    parts.loss().backward()
    levels = {key: own for part in parts.parts for key, own in part.levels().items()}
    total = sum(own.numel() for own in levels.values())
    own = parts.ilwp
    assert own is not None
    for key, raw in quantizer.raw_weights().items():
        part = own if key in own.hooked else parts.parts[1]
        model = part.codes._models[key]
        level = levels[key].detach()
        slope = torch.where(level.abs() < 1, model.jump, model.slope) * level.sign()
        expected = (slope / part.encoding_steps()[key] / total).reshape(raw.shape).to(raw.dtype)
        if part is own:  # the inter-layer loss pulls, too
            assert raw.grad is not None
            continue
        torch.testing.assert_close(raw.grad, expected)
    bits, codes = parts.code_bits()
    assert codes == total and parts.statistics()["bits per weight"] == pytest.approx(bits / codes)


def test_layers_whose_step_follows_themselves_have_none() -> None:
    quantizer = FakeQuantizer(process.network(norms=True), process.WITH_RATE.replace(bits=4))
    own = quantizer.parts.ilwp
    assert own is not None and not own.levels()


def test_max_drop(tmp_path: Path) -> None:
    """The score falls by what the file is smaller, so that the largest rate that keeps it is known."""
    model = process.network(norms=True)

    def evaluate(network: nn.Module) -> float:
        return float(sum(int((tensor != 0).sum()) for tensor in network.state_dict().values()))

    before = evaluate(model)
    seen: list[Progress] = []
    result = fine_tune(
        model,
        process.data(),
        process.loss,
        process.WITH_RATE.replace(rate=3.0),
        FineTuning(epochs=2, batch=16, lr=1e-2, norm_batches=2),
        max_drop=0.4 * before,
        evaluate=evaluate,
        checkpoint=tmp_path / "checkpoint.pt",
        out=tmp_path / "model.ilwp",
        report=seen.append,
    )
    assert {progress.trial for progress in seen} == {1, 2, 3, 4}
    assert result.drop is not None and 0 < result.drop <= 0.4 * before
    assert before - evaluate(model) == result.drop
    assert same(load(tmp_path / "model.ilwp").state_dict(), dict(model.state_dict()))
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == [f"checkpoint.pt.{n}" for n in range(1, 5)]


def test_targets_that_make_no_sense() -> None:
    def tune(config: IlwpConfig = process.WITH_RATE, **options: Any) -> None:
        plan = FineTuning(epochs=1, batch=40, norm_batches=0)
        fine_tune(process.network(norms=True), process.data(), process.loss, config, plan, **options)

    def nothing(_: nn.Module) -> float:
        return 0.0

    scores = iter([1.0])  # that of the model as it was

    def worse(_: nn.Module) -> float:
        return next(scores, 0.0)

    with pytest.raises(ConfigError, match="one target at a time"):
        tune(target_bytes=1000, max_drop=0.1, evaluate=nothing)
    with pytest.raises(ConfigError, match="target_bytes: expected a finite number > 0"):
        tune(target_bytes=0)
    with pytest.raises(ConfigError, match="target_bytes: steers the rate of the training; set `rate`"):
        tune(process.WITH_RATE.replace(rate=0.0), target_bytes=1000)
    with pytest.raises(ConfigError, match="max_drop and evaluate"):
        tune(max_drop=0.1)
    with pytest.raises(TrainingError, match=r"takes \d+ bytes alone"):
        tune(target_bytes=300)
    with pytest.raises(TrainingError, match=r"this training comes to \d+ bytes and not below"):
        tune(target_bytes=480)
    with pytest.raises(TrainingError, match=r"max_drop=0.1: none of 4 trainings keeps the score .*1 times the rate"):
        tune(max_drop=0.1, evaluate=worse)
