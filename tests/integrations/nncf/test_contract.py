"""What every integration promises."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilwp_integrations.nncf import NNCFConfig, create_compressed_model
from torch import Tensor, nn

from ilwp_plugin.testing import IntegrationContract


class Compressed:
    def __init__(self, model: nn.Module, config: Mapping[str, Any], example: Tensor) -> None:
        whole = {
            "input_info": {"sample_size": list(example.shape)},
            "compression": {"algorithm": "ilwp", **config},
        }
        self.controller, self.model = create_compressed_model(model, NNCFConfig.from_dict(whole), dump_graphs=False)
        self.loss = self.controller.loss

    def finish(self) -> nn.Module:
        return self.controller.strip()

    def save(self, path: Path) -> None:
        self.controller.save_ilwp(path)


class TestNncf(IntegrationContract):
    def attach(self, model: nn.Module, config: Mapping[str, Any], example: Tensor) -> Compressed:
        return Compressed(model, config, example)
