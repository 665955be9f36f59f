"""Every recipe in a process group: all processes end with the same file, and several recipes with that of one process.

The others look at gradients of a process's share of a batch, whose squares are not those of the whole batch.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.recipes.several_processes import trained

ROOT = Path(__file__).parent.parent.parent


def test_as_in_one_process(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    module = ["-m", "tests.recipes.several_processes", str(tmp_path / "out.pt")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *module]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    together = torch.load(tmp_path / "out.pt", weights_only=True)
    for name in ("deep_compression", "slq", "mlq", "soft_weight_sharing"):  # the weights alone tell what these do
        for key, tensor in trained(name).items():
            torch.testing.assert_close(together[name][key], tensor, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")
