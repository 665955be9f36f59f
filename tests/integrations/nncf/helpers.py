"""Small networks, configs and a training loop as NNCF's users write it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ilwp_integrations.nncf import NNCFConfig, create_compressed_model, register_default_init_args
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ilwp_plugin.testing import settle
from ilwp_plugin.zoo import build_model

ILWP = {"algorithm": "ilwp", "preset": "paper", "bits": 4, "loss_weight": 3.0}
"""The chains alone: outputs then stay the same bit for bit from training to file."""
WHOLE = {"algorithm": "ilwp", "loss_weight": 3.0}
"""The default: every layer, norms and biases."""
MAGNITUDE = {
    "algorithm": "magnitude_sparsity",
    "sparsity_init": 0.3,
    "params": {"schedule": "multistep", "multistep_steps": [1], "multistep_sparsity_levels": [0.3, 0.5]},
}
RB = {
    "algorithm": "rb_sparsity",
    "sparsity_init": 0.1,
    "params": {"sparsity_target": 0.4, "sparsity_target_epoch": 1, "sparsity_freeze_epoch": 1},
}
FILTERS = {
    "algorithm": "filter_pruning",
    "pruning_init": 0.3,
    "params": {"pruning_target": 0.3, "schedule": "baseline"},
}
SAFE_ENUMS = not (3, 11) <= sys.version_info < (3, 11, 4)
"""These Pythons pickle the enumerations in NNCF's state by `getattr`, which torch's safe loading refuses."""
INT8 = {"algorithm": "quantization", "initializer": {"range": {"num_init_samples": 8}}}


def images(count: int = 8, channels: int = 1, size: int = 16) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def network(name: str = "mobilenetv2", channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, width=0.25, in_channels=channels, stem_stride=2)
    return settle(model, images(channels=channels))


def config_of(
    sections: Sequence[Mapping[str, Any]] | Mapping[str, Any], shape: Sequence[int] = (2, 1, 16, 16), **more: Any
) -> NNCFConfig:
    config = NNCFConfig.from_dict({"input_info": {"sample_size": list(shape)}, "compression": sections, **more})
    inputs = images(8, shape[1], shape[2])
    loader = DataLoader(TensorDataset(inputs, torch.arange(8)), batch_size=4)
    return register_default_init_args(config, loader)


def compressed(sections: Any, model: nn.Module | None = None, state: Any = None, **more: Any) -> tuple[Any, nn.Module]:
    model = network() if model is None else model
    sections = list(sections) if isinstance(sections, tuple) else sections
    return create_compressed_model(model, config_of(sections, **more), compression_state=state, dump_graphs=False)


def check_in_a_new_process(file: Path, outputs: Tensor, tolerance: float) -> None:
    """That a process which knows the network alone restores the model, with these outputs for `images()`."""
    torch.save(outputs, file.with_suffix(".pt"))
    code = (
        "import sys, torch\n"
        "from ilwp_integrations.nncf import restore\n"
        "from tests.integrations.nncf.helpers import images, network\n"
        "file, outputs, tolerance = sys.argv[1:]\n"
        "limits = dict.fromkeys(('rtol', 'atol'), float(tolerance))\n"
        "torch.testing.assert_close(restore(file, network())(images()), torch.load(outputs), **limits)\n"
    )
    command = [sys.executable, "-c", code, str(file), str(file.with_suffix(".pt")), str(tolerance)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])


def session_of(controller: Any) -> Any:
    """That of the section of ours."""
    return next(c.session for c in getattr(controller, "child_ctrls", [controller]) if hasattr(c, "session"))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.02, momentum=0.9)


def train(
    controller: Any, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: Sequence[int] = (0, 1), steps: int = 2
) -> list[float]:
    """The losses of all steps."""
    losses = []
    x = images()
    for epoch in epochs:
        torch.manual_seed(epoch)
        controller.scheduler.epoch_step(epoch)
        model.train()
        for _ in range(steps):
            controller.scheduler.step()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), torch.arange(8)) + controller.loss()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    return losses


def depthwise(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.weight": module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    }
