"""A rate in the config: NNCF's own loop trains its way to a small file, alone and stacked."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ilwp_plugin import load

from .helpers import INT8, MAGNITUDE, compressed, session_of, train

STACKS = [(), (MAGNITUDE,), (INT8,)]


def section(rate: float) -> dict[str, Any]:
    return {
        "algorithm": "ilwp",
        "mode": "collocated",
        "weight_step": 0.05,
        "loss_weight": 0.0,
        "rate": rate,
        "params": {"rate_schedule": [[0, 0.5], [1, 1.0]]},
    }


@pytest.mark.parametrize("others", STACKS, ids=["alone", "magnitude_sparsity", "int8"])
def test_rate(others: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    """The loss carries it, the scheduler its ramp, and statistics the size, which is smaller than without."""
    sizes = []
    for rate in (1e-6, 50.0):
        controller, model = compressed((*others, section(rate)))
        train(controller, model, torch.optim.AdamW(model.parameters(), 1e-2), steps=4)
        found = controller.statistics().ilwp
        bits = found.numbers["bits per weight"]
        session = session_of(controller)
        assert session.parts.rate_factor == 1.0 and session.schedule.rate_factor(0) == 0.5
        if rate == 50.0:
            assert float(controller.loss().detach()) > 0.8 * rate * bits
        ledger = controller.save_ilwp(tmp_path / "model.ilwp")
        assert found.ledger.file_bytes == pytest.approx(ledger.file_bytes, rel=0.02)
        assert load(tmp_path / "model.ilwp").ledger.file_bytes == ledger.file_bytes
        sizes.append((bits, ledger.file_bytes))
    assert sizes[1][0] < 0.98 * sizes[0][0] and sizes[1][1] < 0.99 * sizes[0][1], sizes
