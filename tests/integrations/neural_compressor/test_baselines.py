"""INC's methods of a comparison: files, restored outputs, sizes, options."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ilwp_integrations.neural_compressor import baselines
from neural_compressor.torch.quantization import MixedPrecisionConfig, quantize

from ilwp_plugin.compare.methods import Case, find_method
from ilwp_plugin.errors import ConfigError, RegistryError
from tests.integrations.comparing import Outcome, check_that_all_comes_from_the_file, outputs_of, run, small_case

GRID = {"preset": "paper", "bits": None, "weight_step": 0.05, "batch_norm": "merged"}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return small_case(tmp_path)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs in memory that are written to files."""
    seen: list[Any] = []
    original = baselines.compress_exported
    monkeypatch.setattr(baselines, "compress_exported", lambda graph: seen.append(graph) or original(graph))
    return seen


def both(case: Case, name: str) -> tuple[Outcome, Outcome]:
    return run(case, name, images=64), run(case, name, images=64, ilwp=GRID)


@pytest.mark.parametrize("name", ["inc.static", "inc.dynamic"])
def test_int8(case: Case, graphs: list[Any], name: str) -> None:
    alone, stacked = both(case, name)
    for outcome, graph in zip((alone, stacked), graphs, strict=True):
        assert torch.equal(outcome.outputs, outputs_of(graph, case))
        assert outcome.percent > 85
    assert stacked.depthwise_bytes < alone.depthwise_bytes
    assert stacked.ledger.file_bytes < alone.ledger.file_bytes
    # int8 codes and their scales: the whole is about a quarter of fp32
    fp32 = sum(tensor.nbytes for tensor in case.state.values())
    assert 0.2 * fp32 < alone.compressed.raw_bytes < 0.4 * fp32
    scales = 32 if name == "inc.static" else 1  # a channel, a tensor: INC's defaults
    assert alone.compressed.raw_depthwise_bytes == 3 * (32 * 9 + 4 * scales)


@pytest.mark.parametrize(
    ("name", "options"), [("static", {"images": 64, "ilwp": {**GRID, "align": True}}), ("mixed_precision", {})]
)
def test_all_comes_from_the_file(tmp_path: Path, name: str, options: Any) -> None:
    check_that_all_comes_from_the_file(tmp_path, f"inc.{name}", **options)


@pytest.mark.parametrize(("dtype", "precision"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision(case: Case, dtype: str, precision: torch.dtype) -> None:
    outcome = run(case, "inc.mixed_precision", dtype=dtype)
    expected = quantize(case.model(), MixedPrecisionConfig(dtype=dtype)).eval()
    assert torch.equal(outcome.outputs, outputs_of(expected, case))
    stored = {name: t for name, t in case.state.items() if t.dim() > 1 or name == "classifier.bias"}
    fp32 = sum(tensor.nbytes for tensor in case.state.values())
    assert outcome.compressed.raw_bytes == fp32 - sum(2 * tensor.numel() for tensor in stored.values())
    assert outcome.compressed.raw_depthwise_bytes == 3 * 32 * 9 * precision.itemsize


def test_options() -> None:
    static, half = find_method("inc.static"), find_method("inc.mixed_precision")
    with pytest.raises(ConfigError, match="image.*images"):
        static.options.from_dict({"image": 3})
    with pytest.raises(ConfigError, match="images"):
        static.options.from_dict({"images": 1})
    with pytest.raises(ConfigError, match="unknown key 'ilwp.bit'.*bits"):
        static.options.from_dict({"ilwp": {"bit": 3}})
    with pytest.raises(ConfigError, match="set_local"):
        static.options.from_dict({"ilwp": {"overrides": {"features.3": {"bits": 4}}}})
    with pytest.raises(ConfigError, match="fp16"):
        half.options.from_dict({"dtype": "fp8"})
    with pytest.raises(RegistryError, match="inc.statik.*static"):
        find_method("inc.statik")
