"""The contract, kept by a plain PyTorch loop: the reference for every adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ilwp_plugin import CompressedModel, IlwpConfig
from ilwp_plugin.testing import IntegrationContract
from ilwp_plugin.training import FakeQuantizer, InterLayerLoss


class PlainTorch:
    def __init__(self, model: nn.Module, config: IlwpConfig) -> None:
        self.model, self.config = model, config
        self.loss = InterLayerLoss(model, config)
        self.quantizer = (
            FakeQuantizer(model, config) if any(recipe.quantizes() for recipe in config.recipe_list()) else None
        )
        self.compressed: CompressedModel | None = None

    def finish(self) -> nn.Module:
        if self.quantizer is not None:
            self.quantizer.remove()
            self.compressed = self.quantizer.compressed()
            self.compressed.apply_to(self.model)
        return self.model

    def save(self, path: Path) -> None:
        assert self.compressed is not None
        self.compressed.save(path)


class TestPlainTorch(IntegrationContract):
    def attach(self, model: nn.Module, config: Mapping[str, Any], example: Tensor) -> PlainTorch:
        return PlainTorch(model, IlwpConfig.from_dict(config))
