"""NNCF's methods of a comparison: files, restored outputs, sizes, options, resumption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ilwp_integrations.nncf import baselines
from torch import nn

from ilwp_plugin.compare.baselines import int8_weights
from ilwp_plugin.compare.methods import find_method
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.training.loop import Loop
from tests.integrations.comparing import check_that_all_comes_from_the_file, outputs_of, run, small_case

ILWP = {"preset": "paper", "bits": 4, "anchor": "quantized", "loss_weight": 2.0}
INT8 = {"algorithm": "quantization"}
SPARSE = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5, "params": {"sparsity_target": 0.5}}
SPARSE["params"] |= {"schedule": "exponential", "sparsity_target_epoch": 1}  # type: ignore[operator]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The stripped models in memory that files are made of."""
    seen: list[nn.Module] = []
    original = baselines.raw_sizes

    def spy(compressed: Any, model: nn.Module, **options: Any) -> Any:
        seen.append(model)
        return original(compressed, model, **options)

    monkeypatch.setattr(baselines, "raw_sizes", spy)
    return seen


@pytest.mark.parametrize(
    ("name", "options", "stack"),
    [
        ("nncf.quantize", {"images": 100}, {"ilwp": ILWP}),
        ("nncf.compress_weights", {}, {"ilwp": ILWP}),
        ("nncf.compress_weights", {"mode": "int8_sym"}, {"ilwp": ILWP}),
        (
            "nncf.train",
            {"epochs": 1, "images": 100, "compression": [INT8]},
            {"compression": [INT8, {"algorithm": "ilwp", **ILWP}]},
        ),
        (
            "nncf.train",
            {"epochs": 1, "images": 100, "compression": [SPARSE, INT8]},
            {"compression": [SPARSE, INT8, {"algorithm": "ilwp", **ILWP}]},
        ),
    ],
)
def test_integers(tmp_path: Path, models: list[Any], name: str, options: Any, stack: Any) -> None:
    found = []
    for extra in ({}, stack):
        case = small_case(tmp_path / str(len(found)))
        outcome = run(case, name, **{**options, **extra})
        assert torch.equal(outcome.outputs, outputs_of(models[-1], case))
        assert outcome.percent > 70
        found.append(outcome)
    alone, stacked = found
    assert stacked.depthwise_bytes < 0.7 * alone.depthwise_bytes
    assert stacked.ledger.file_bytes < alone.ledger.file_bytes
    assert stacked.compressed.raw_depthwise_bytes == 3 * (32 * 9 // 2 + 4)
    per_channel = {"int8_sym": 2, "int8_asym": 3}[options.get("mode", "int8_asym")] if "compress" in name else 4
    assert alone.compressed.raw_depthwise_bytes == 3 * 32 * (9 + per_channel)


def test_prune(tmp_path: Path, models: list[Any]) -> None:
    outcomes = {}
    for number, (bits, ilwp) in enumerate([(None, None), (8, None), (8, ILWP)]):
        case = small_case(tmp_path / str(number))
        outcomes[bits, ilwp is not None] = run(case, "nncf.prune", epochs=1, weight_bits=bits, ilwp=ilwp)
    plain, alone, stacked = outcomes.values()
    assert torch.equal(plain.outputs, outputs_of(models[0], case))
    for outcome in outcomes.values():
        weights = [module.weight for module in outcome.restored.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        assert zeros >= 0.499
        assert outcome.percent > 80
    rounded = {name: torch.from_numpy(value.restore()) for name, value in int8_weights(models[0]).items()}
    models[0].load_state_dict({**models[0].state_dict(), **rounded})
    assert torch.equal(alone.outputs, outputs_of(models[0], case))
    assert plain.compressed.raw_bytes == sum(tensor.nbytes for tensor in case.state.values())
    assert stacked.depthwise_bytes < alone.depthwise_bytes < plain.depthwise_bytes
    assert stacked.ledger.file_bytes < alone.ledger.file_bytes < plain.ledger.file_bytes


@pytest.mark.parametrize(
    ("name", "options"), [("quantize", {"images": 50}), ("compress_weights", {"mode": "int8_sym"})]
)
def test_all_comes_from_the_file(tmp_path: Path, name: str, options: Any) -> None:
    check_that_all_comes_from_the_file(tmp_path, f"nncf.{name}", **options)


def test_merged_batch_norms(tmp_path: Path) -> None:
    exact, merged = ({"bits": 6, "weight_step": 0.03, "batch_norm": how} for how in ("exact", "merged"))
    plain = run(small_case(tmp_path / "a"), "nncf.prune", epochs=1, ilwp=exact)
    small = run(small_case(tmp_path / "b"), "nncf.prune", epochs=1, ilwp=merged)
    assert small.ledger.file_bytes < 0.7 * plain.ledger.file_bytes
    assert small.percent > plain.percent - 2


def test_adamw_and_a_rate(tmp_path: Path) -> None:
    training = {"epochs": 1, "lr": 0.001, "ilwp": {"weight_step": 0.05, "rate": 0.5}}
    optimizers = ("sgd", "adamw")
    found = [run(small_case(tmp_path / name), "nncf.prune", optimizer=name, **training) for name in optimizers]
    assert not torch.equal(found[0].outputs, found[1].outputs)
    assert min(outcome.percent for outcome in found) > 80


def test_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [small_case(tmp_path / name) for name in "ab"]
    sections = [
        {"algorithm": "rb_sparsity", "sparsity_init": 0.2, "params": {"sparsity_target": 0.4}},
        {**INT8},
        {"algorithm": "ilwp", **ILWP},
    ]
    options = {"epochs": 2, "images": 50, "compression": sections}
    run(cases[0], "nncf.train", **options)
    save = Loop.save

    def stop(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(cases[1], "nncf.train", **options)
    monkeypatch.setattr(Loop, "save", save)
    run(cases[1], "nncf.train", **options)
    first, second = ((case.folder / "model").read_bytes() for case in cases)
    assert first == second


def test_errors() -> None:
    weights, train, prune = (find_method(f"nncf.{name}") for name in ("compress_weights", "train", "prune"))
    with pytest.raises(ConfigError, match="'int4_sym' does not apply to convolutions.*int8_asym or int8_sym"):
        weights.options.from_dict({"mode": "int4_sym"})
    with pytest.raises(ConfigError, match="mode"):
        weights.options.from_dict({"mode": "int7"})
    with pytest.raises(ConfigError, match="compression"):
        train.options.from_dict({})
    with pytest.raises(ConfigError, match="quantisation.*quantization"):
        train.options.from_dict({"compression": [{"algorithm": "quantisation"}]})
    with pytest.raises(ConfigError, match="bits"):
        train.options.from_dict({"compression": [{"algorithm": "ilwp", "bits": 11}]})
    with pytest.raises(ConfigError, match="ratios.*ratio"):
        prune.options.from_dict({"ratios": 0.4})
    with pytest.raises(ConfigError, match="unknown key 'ilwp.mod'.*mode"):
        prune.options.from_dict({"ilwp": {"mod": "local"}})
