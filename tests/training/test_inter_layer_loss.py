import copy
import logging
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import ChainError, TensorError, TrainingError
from ilwp_plugin.method.loss import inter_layer_loss
from ilwp_plugin.training import InterLayerLoss, TrainingRun
from ilwp_plugin.zoo import build_model

FIXED = IlwpConfig(loss_weight=2.0, bits=None)


def depthwise(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


def test_value_and_weight(mobilenet: nn.Module) -> None:
    loss = InterLayerLoss(mobilenet, FIXED)
    expected = inter_layer_loss([depthwise(mobilenet)])
    torch.testing.assert_close(loss.value(), expected)
    torch.testing.assert_close(loss(), 2 * expected)
    assert loss.predicted_weights == 11088 and len(loss.chains.chains[0].layers) == 13
    loss.loss_weight = 0.5
    torch.testing.assert_close(loss(), expected / 2)
    loss.loss_weight = 0
    assert float(loss().detach()) == 0 and not loss().requires_grad
    assert "predicted_weights=11088" in repr(loss)


def test_weights_are_looked_up_at_each_call(mobilenet: nn.Module) -> None:
    loss = InterLayerLoss(mobilenet, FIXED)
    for weight in depthwise(mobilenet):
        weight.data.zero_()
    assert float(loss().detach()) == 0
    first = next(m for m in mobilenet.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    first.weight = nn.Parameter(torch.ones_like(first.weight))
    assert float(loss().detach()) > 0


def test_module_owns_no_parameters(mobilenet: nn.Module) -> None:
    loss = InterLayerLoss(mobilenet, FIXED)
    assert not list(loss.parameters()) and not loss.state_dict()
    mobilenet.regularizer = loss
    assert len(list(mobilenet.parameters())) == len({id(p) for p in mobilenet.parameters()})


def test_automatic_weight(mobilenet: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = torch.optim.SGD(mobilenet.parameters(), 0.1, momentum=0.9)
    with caplog.at_level(logging.INFO, "ilwp_plugin"):
        loss = InterLayerLoss(mobilenet, IlwpConfig(), run=TrainingRun.of(optimizer, 440))
    assert 5 < loss.loss_weight < 100
    assert f"inter-layer loss weight {loss.loss_weight:.4g} (automatic: 11088 predicted weights" in caplog.text
    with pytest.raises(TrainingError, match="pass run=TrainingRun.of"):
        InterLayerLoss(mobilenet, IlwpConfig())


def test_training_step_brings_layers_together(mobilenet: nn.Module, images: Tensor) -> None:
    loss = InterLayerLoss(mobilenet, IlwpConfig(loss_weight=1000.0))
    optimizer = torch.optim.SGD(mobilenet.parameters(), 0.001)
    before = float(loss.value().detach())
    (F.cross_entropy(mobilenet(images), torch.arange(4)) + loss()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert float(loss.value().detach()) < before


def test_index_maps(mobilenet: nn.Module) -> None:
    plain = InterLayerLoss(mobilenet, FIXED)
    name = plain.chains.chains[0].layers[1]
    count = len(depthwise(mobilenet)[1])
    same = InterLayerLoss(mobilenet, FIXED, references={name: torch.arange(count) % len(depthwise(mobilenet)[0])})
    torch.testing.assert_close(same(), plain())
    other = InterLayerLoss(mobilenet, FIXED, references={name: torch.zeros(count, dtype=torch.long)})
    assert float(other().detach()) != float(plain().detach())
    orphans = InterLayerLoss(mobilenet, FIXED, references={name: torch.full((count,), -1)})
    assert orphans.predicted_weights == plain.predicted_weights - 9 * count
    with pytest.raises(ChainError, match="is no predicted layer"):
        InterLayerLoss(mobilenet, FIXED, references={"x": torch.zeros(1)})
    with pytest.raises(TensorError, match="references of layer"):
        InterLayerLoss(mobilenet, FIXED, references={name: torch.zeros(1, dtype=torch.long)})


def test_model_without_a_chain() -> None:
    with pytest.raises(ChainError, match="no chain"):
        InterLayerLoss(nn.Conv2d(3, 3, 3), FIXED)


def test_autocast_and_half_precision(mobilenet: nn.Module) -> None:
    loss = InterLayerLoss(mobilenet, FIXED)
    expected = loss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss()
    assert inside.dtype == torch.float32 and torch.equal(inside, expected)
    mobilenet.bfloat16()
    assert loss().dtype == torch.float32
    torch.testing.assert_close(loss(), expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("references", [False, True])
def test_compiles_without_a_graph_break(mobilenet: nn.Module, references: bool) -> None:
    name = InterLayerLoss(mobilenet, FIXED).chains.chains[0].layers[1]
    given = {name: torch.arange(len(depthwise(mobilenet)[1])) % 8 - 1} if references else None
    loss = InterLayerLoss(mobilenet, FIXED, references=given)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (loss, compiled):
        mobilenet.zero_grad()
        value = function()
        value.backward()
        gradients.append([weight.grad.clone() for weight in depthwise(mobilenet) if weight.grad is not None])
    torch.testing.assert_close(compiled(), loss())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_and_wrapped_models_are_looked_through(mobilenet: nn.Module) -> None:
    expected = InterLayerLoss(mobilenet, FIXED)()
    for wrapped in (torch.compile(mobilenet), nn.DataParallel(mobilenet)):
        torch.testing.assert_close(InterLayerLoss(wrapped, FIXED)(), expected)  # type: ignore[arg-type]


def _network() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("mobilenet", width=0.25, stem_stride=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # statistics of a batch depend on its split, the loss does not
    return model


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    loss = InterLayerLoss(model, IlwpConfig(loss_weight=20.0))
    (F.cross_entropy(model(images), labels) + loss()).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        images, labels = torch.load(Path(folder) / "batch.pt", weights_only=True)
        model = nn.parallel.DistributedDataParallel(_network())
        half = slice(rank * len(images) // 2, (rank + 1) * len(images) // 2)
        torch.save(_gradients(model, images[half], labels[half]), Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks_give_the_gradients_of_one_process(tmp_path: Path) -> None:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8)
    torch.save((images, labels), tmp_path / "batch.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    single = _gradients(_network(), images, labels)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert len(single) == len(ranks[0]) == len(ranks[1])
    for one, a, b in zip(single, *ranks, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, one, rtol=1e-4, atol=1e-5)


def test_deepcopy_follows_the_copied_model(mobilenet: nn.Module) -> None:
    mobilenet.regularizer = InterLayerLoss(mobilenet, FIXED)
    twin = copy.deepcopy(mobilenet)
    for weight in depthwise(twin):
        weight.data.zero_()
    assert float(twin.regularizer().detach()) == 0 and float(mobilenet.regularizer().detach()) > 0  # type: ignore[operator]
