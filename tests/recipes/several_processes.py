"""Fine-tunings with each recipe, alone or under torchrun; writes what they end with.

python -m tests.recipes.several_processes OUT
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ilwp_plugin.training import FineTuning, fine_tune
from tests.training.fine_tuning_process import data, loss, network

PLAN = FineTuning(epochs=2, batch=16, lr=0.002, norm_batches=0, seed=5)
RECIPES: dict[str, dict[str, Any]] = {
    "deep_compression": {"sparsity": 0.4, "conv_bits": 2, "linear_bits": 2, "cluster_epoch": 1, "codebook": "network"},
    "slq": {"clusters": 3, "fixed": [1, 3]},
    "mlq": {"rounds": 2},
    "soft_weight_sharing": {"assign_epoch": 1},
    "ecsq": {"step": 0.05, "hold_from": 1},
    "universal": {"step": 0.05, "levels": "trained", "hold_from": 1},
    "soft_to_hard": {"entries": 5, "epochs": 1},
    "weight_fixing": {"fractions": [0.5, 1.0]},
}


def trained(name: str) -> dict[str, Tensor]:
    """The restored state, the same in every process."""
    torch.manual_seed(2)
    model = network(norms=False)
    config = {"recipes": [{"name": name, **RECIPES[name]}]}
    state = fine_tune(model, data(), loss, config, PLAN).compressed.state_dict()
    if dist.is_initialized():
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, state)
        for other in states:
            assert all(torch.equal(tensor, other[key]) for key, tensor in state.items()), name
    return state


if __name__ == "__main__":
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    found = {name: trained(name) for name in RECIPES}
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(found, Path(sys.argv[1]))
    if dist.is_initialized():
        dist.destroy_process_group()
