"""A fine-tuning in a process of its own, alone or under torchrun; killed where the test wants it.

python -m tests.training.fine_tuning_process OUT --norms --kill-at 7 --kill-rank 0 --kill-in write
"""

import argparse
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilwp_plugin import IlwpConfig
from ilwp_plugin.training import FineTuned, FineTuning, Progress, fine_tune

PLAN = FineTuning(epochs=2, batch=16, lr=0.02, quantize_from=0.4, norm_batches=2, checkpoint_steps=3, seed=5)
STEPS = 10
CONFIG = IlwpConfig(bits=4, anchor="fp16")
WITH_RATE = IlwpConfig(mode="collocated", weight_step=0.05, rate=1.0)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(80, 3, 8, 8, generator=generator, dtype=torch.float64)
    return TensorDataset(images, torch.arange(80) % 4)


def network(norms: bool) -> nn.Module:
    """In float64, where sums in another order differ by so little that no weight is rounded to another code."""
    torch.manual_seed(1)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 1)]
    for stride in (1, 2, 1):
        layers += [nn.Conv2d(8, 8, 3, stride, 1, groups=8, bias=not norms)]
        layers += [nn.BatchNorm2d(8)] if norms else []
        layers += [nn.ReLU(), nn.Conv2d(8, 8, 1)]
    return nn.Sequential(*layers, nn.Dropout(0.1 if norms else 0.0), nn.Flatten(), nn.Linear(128, 4)).double()


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def noisy_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Draws from all generators that an augmentation might use."""
    shift = float(torch.randn(())) + random.gauss(0, 1) + float(np.random.randn())  # noqa: NPY002
    return F.cross_entropy(model(batch[0] + shift / 10), batch[1])


def run(folder: Path, norms: bool, config: IlwpConfig = CONFIG, **options: object) -> tuple[nn.Module, FineTuned]:
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    model = network(norms)
    plan = PLAN if config is CONFIG else replace(PLAN, epochs=6, lr=1e-2, quantize_from=0.0, norms_last=0.2)
    arguments = {"checkpoint": folder / "checkpoint.pt", "out": folder / "model.ilwp", **options}
    return model, fine_tune(model, data(), noisy_loss if norms else loss, config, plan, **arguments)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--norms", action="store_true")
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--kill-rank", type=int, default=0)
    parser.add_argument("--kill-in", choices=["step", "write"], default="step")
    parser.add_argument("--without-group", action="store_true")
    parser.add_argument("--target-bytes", type=float, help="with a rate term")
    options = parser.parse_args()
    if "RANK" in os.environ and not options.without_group:
        dist.init_process_group("gloo")
    rank = int(os.environ.get("RANK", "0"))
    writes = 0

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def report(progress: Progress) -> None:
        if options.kill_at == progress.step and options.kill_in == "step" and rank == options.kill_rank:
            die()

    if options.kill_in == "write":
        fsync = os.fsync

        def counted(handle: int) -> None:
            nonlocal writes
            writes += 1
            if writes == options.kill_at:
                die()
            fsync(handle)

        os.fsync = counted
    config = CONFIG if options.target_bytes is None else WITH_RATE
    model, _ = run(options.folder, options.norms, config, report=report, target_bytes=options.target_bytes)
    torch.save(model.state_dict(), options.folder / f"rank{rank}.pt")
    assert dist.is_initialized() == ("RANK" in os.environ and not options.without_group)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
