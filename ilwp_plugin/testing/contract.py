"""The tests that every integration has to pass. Subclass `IntegrationContract` and implement `attach`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ChainError, ConfigError
from ilwp_plugin.pipeline.compress import compress
from ilwp_plugin.pipeline.file import load
from ilwp_plugin.training import InterLayerLoss
from ilwp_plugin.zoo import build_model

__all__ = ["Adapter", "IntegrationContract", "settle"]


@torch.no_grad()
def settle(model: nn.Module, example: Tensor) -> nn.Module:
    """Give batch norm layers the statistics of an input; with their initial ones a deep network outputs a constant.

    The model is left in eval mode.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(example)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    return model.eval()


class Adapter(Protocol):
    """A model under a toolkit, with ilwp added the toolkit's way."""

    @property
    def model(self) -> nn.Module:
        """The model to train; with a quantizer it computes with reconstructed weights."""
        ...

    def loss(self) -> Tensor:
        """The toolkit's compression loss: the weighted inter-layer loss, a scalar."""
        ...

    def finish(self) -> nn.Module:
        """The plain model after training, reconstructed weights baked in."""
        ...

    def save(self, path: Path) -> None:
        """Write the `.ilwp` file of the finished model."""
        ...


class IntegrationContract(ABC):
    """What ilwp promises under any toolkit; one test for each promise."""

    @abstractmethod
    def attach(self, model: nn.Module, config: Mapping[str, Any], example: Tensor) -> Adapter:
        """Add ilwp to a model through the toolkit.

        Args:
            model: a float model, to be changed or copied as the toolkit does.
            config: fields of IlwpConfig, as the toolkit's own configuration would hold them; in most tests the paper's
                preset, so that outputs stay the same bit for bit.
            example: an input.
        """

    @pytest.fixture
    def example(self) -> Tensor:
        """An input: (4, 1, 16, 16) float32."""
        return torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))

    @pytest.fixture
    def network(self, example: Tensor) -> nn.Module:
        """A small MobileNet whose batch norms have the statistics of the example."""
        torch.manual_seed(0)
        return settle(build_model("mobilenet", width=0.25, in_channels=1, stem_stride=2), example)

    def _train(self, adapter: Adapter, example: Tensor, lr: float = 0.05) -> None:
        optimizer = torch.optim.SGD([p for p in adapter.model.parameters() if p.requires_grad], lr)
        adapter.model.train()
        for _ in range(3):
            optimizer.zero_grad()
            (F.cross_entropy(adapter.model(example), torch.arange(len(example))) + adapter.loss()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def test_loss_is_that_of_the_core(self, network: nn.Module, example: Tensor) -> None:
        reference = InterLayerLoss(network, IlwpConfig.paper(loss_weight=3.0))()
        adapter = self.attach(copy.deepcopy(network), {"preset": "paper", "loss_weight": 3.0, "bits": None}, example)
        torch.testing.assert_close(adapter.loss(), reference)

    def test_loss_alone_quantizes_nothing(self, network: nn.Module, example: Tensor) -> None:
        adapter = self.attach(copy.deepcopy(network), {"preset": "paper", "loss_weight": 3.0, "bits": None}, example)
        network.eval()
        torch.testing.assert_close(adapter.model.eval()(example), network(example), rtol=0, atol=0)

    def test_its_gradient_lowers_the_loss(self, network: nn.Module, example: Tensor) -> None:
        adapter = self.attach(network, {"preset": "paper", "loss_weight": 1000.0, "bits": None}, example)
        before = float(adapter.loss().detach())
        optimizer = torch.optim.SGD([p for p in adapter.model.parameters() if p.requires_grad], 0.001)
        for _ in range(3):
            optimizer.zero_grad()
            adapter.loss().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert float(adapter.loss().detach()) < before

    def test_quantizer_alone_adds_no_loss(self, network: nn.Module, example: Tensor) -> None:
        adapter = self.attach(network, {"preset": "paper", "loss_weight": 0, "bits": 4}, example)
        assert float(adapter.loss().detach()) == 0

    @pytest.mark.parametrize("anchor", ["fp32", "fp16", "quantized"])
    @pytest.mark.parametrize("mode", ["none", "collocated", "local", "full"])
    def test_file_restores_what_training_computed_with(
        self, network: nn.Module, example: Tensor, tmp_path: Path, mode: str, anchor: str
    ) -> None:
        plain = copy.deepcopy(network)
        adapter = self.attach(
            network, {"preset": "paper", "loss_weight": 1.0, "bits": 4, "mode": mode, "anchor": anchor}, example
        )
        self._train(adapter, example)
        seen = adapter.model.eval()(example).detach()
        finished = adapter.finish().eval()
        torch.testing.assert_close(finished(example), seen, rtol=0, atol=0)
        path = tmp_path / "model.ilwp"
        adapter.save(path)
        stored = load(path)
        assert stored.ledger.file_bytes == path.stat().st_size
        stored.apply_to(plain)
        torch.testing.assert_close(plain.eval()(example), seen, rtol=0, atol=0)

    def test_by_default_the_whole_file_is_small(self, network: nn.Module, example: Tensor, tmp_path: Path) -> None:
        plain, fp32 = copy.deepcopy(network), sum(tensor.nbytes for tensor in network.state_dict().values())
        adapter = self.attach(network, {"loss_weight": 1.0}, example)
        self._train(adapter, example, lr=0.001)  # steps are chosen for the weights as they are
        seen = adapter.model.eval()(example).detach()
        finished = adapter.finish().eval()
        adapter.save(tmp_path / "model.ilwp")
        stored = load(tmp_path / "model.ilwp")
        assert stored.ledger.file_bytes < 0.3 * fp32
        stored.apply_to(plain)
        outputs = plain.eval()(example).detach()
        torch.testing.assert_close(outputs, finished(example).detach(), rtol=0, atol=0)
        # Weights are those of the training; norms and biases are rounded after it.
        assert float((outputs - seen).norm() / seen.norm()) < 0.02

    def test_quantized_training_moves_the_weights(self, network: nn.Module, example: Tensor) -> None:
        before = compress(network, IlwpConfig.paper(bits=4)).state_dict()
        adapter = self.attach(network, {"preset": "paper", "loss_weight": 0, "bits": 4}, example)
        self._train(adapter, example)
        after = adapter.finish().state_dict()
        depthwise = [name for name, tensor in before.items() if tensor.dim() == 4 and tensor.shape[1] == 1][2:]
        assert all(not torch.equal(before[name], after[name]) for name in depthwise)

    def test_unknown_key_is_refused(self, network: nn.Module, example: Tensor) -> None:
        with pytest.raises(ConfigError, match="'bits'"):
            self.attach(network, {"bist": 4}, example)

    def test_model_without_a_chain_is_refused(self, example: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten())
        with pytest.raises(ChainError, match="not depthwise"):
            self.attach(model, {"preset": "paper", "bits": 4}, example)
