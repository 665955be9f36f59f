"""What the training of every recipe has to keep."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilwp_plugin import compress, loads
from ilwp_plugin.training import FineTuning, Progress, fine_tune

Loss = Callable[[nn.Module, list[Tensor]], Tensor]


class Interrupted(Exception):
    pass


def check_training(
    model: nn.Module, data: TensorDataset, loss: Loss, config: dict[str, Any], folder: Path
) -> dict[str, Tensor]:
    """It ends with what it has computed with, and with the same bits when it was interrupted, within an epoch and
    between two; what it ends with is not what comes without it. Returns what the file restores."""
    before = copy.deepcopy(model)

    def run(model: nn.Module, **options: Any) -> bytes:
        plan = FineTuning(epochs=4, batch=4, lr=0.002, norm_batches=2, checkpoint_steps=3)
        return fine_tune(model, data, loss, config, plan, **options).compressed.to_bytes()

    whole = run(model)
    stored = loads(whole).state_dict()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.state_dict().items())
    plain = compress(before, config).state_dict()
    assert not all(torch.equal(stored[key], plain[key]) for key in stored)
    for stop in (5, 10):
        path = folder / f"{stop}.checkpoint"

        def report(progress: Progress, stop: int = stop) -> None:
            if progress.step == stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            run(copy.deepcopy(before), checkpoint=path, report=report)
        assert run(copy.deepcopy(before), checkpoint=path) == whole
    return stored
