"""The example that measures published networks: its page is that of the committed results, and its sums are right."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from ilwp_plugin import compress

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "published" / "results.jsonl"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    sys.path.insert(0, str(ROOT / "examples"))
    import published

    return published


def test_the_page_is_made_of_the_committed_results(example: ModuleType) -> None:
    from published_page import page

    assert (ROOT / "docs" / "published.md").read_text() == page(example.known(RESULTS))


def test_every_row_is_one_of_the_example(example: ModuleType) -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    assert len({row["name"] for row in rows}) == len(rows) and {row["name"] for row in rows} <= example.ROWS.keys()
    for row in rows:
        assert row.get("same", True) and row["versions"].keys() == example.versions().keys()


def test_integers_have_a_scale_for_each_output(example: ModuleType) -> None:
    values = np.random.default_rng(0).standard_normal((8, 5, 3, 3)).astype(np.float32)
    values[3] *= 100
    coded, restored = example.int8(values)
    assert len(coded) == values.size + 4 * 8
    assert (np.abs(restored - values).max(axis=(1, 2, 3)) <= np.abs(values).max(axis=(1, 2, 3)) / 253).all()
    assert example.signal_to_noise({"w": values}, {"w": restored}) > 40


def test_a_file_of_a_size_has_about_that_size(example: ModuleType) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 64))
    weights = [layer.weight.detach().numpy() for layer in model]
    for limit in (20_000, 40_000):
        file = example.at_size(lambda step: compress(model, {"weight_step": step}), weights, limit)
        assert 0.95 * limit < file.ledger.file_bytes <= limit


def test_divergence_is_that_of_the_outputs(example: ModuleType) -> None:
    outputs = np.array([[1.0, 0.0], [0.0, 2.0]])
    same = example.divergence(outputs, outputs)
    assert same["cosine"] == 1 and same["relative_error"] == 0
    turned = example.divergence(outputs, outputs[:, ::-1])
    assert turned["cosine"] == 0 and turned["relative_error"] == pytest.approx(10 / 2.5)
