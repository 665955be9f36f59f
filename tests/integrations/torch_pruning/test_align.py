import copy
import itertools
from typing import Any

import pytest
import torch
import torch_pruning as tp
from ilwp_integrations.torch_pruning import Coupling, align
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress, estimate
from ilwp_plugin.errors import ChainError, ConfigError, TensorError
from ilwp_plugin.testing import settle
from ilwp_plugin.zoo import MODELS, build_model
from tests.integrations.chained import chained


@pytest.fixture
def example() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def random_norms(model: nn.Module, seed: int = 0) -> None:
    """Trained networks have batch norms with signs and scales of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.copy_(torch.randn(module.num_features, generator=generator) + 1)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) / 4)


def network(name: str, example: Tensor, width: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, width=width)
    random_norms(model)
    return settle(model, example)


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in ("resnet20", "vgg", "lenet5", "lenet300")]
)  # no depthwise layers
def test_function_is_preserved_and_bytes_fall(name: str, example: Tensor) -> None:
    model = network(name, example)
    before = copy.deepcopy(model)
    report = align(model, example)
    other = torch.randn(3, 3, 32, 32)
    expected = before.double()(other.double())
    change = (copy.deepcopy(model).double()(other.double()) - expected).abs().max() / expected.abs().max()
    assert float(change) < 1e-4 and report.change < 1e-3, "rounding of a deep random network in float32"
    layers = {layer.name.removesuffix(".weight") for layer in chained(compress(model, "paper"))}
    assert set(report.aligned) | set(report.refused) == layers and not set(report.aligned) & set(report.refused)
    for bits in (4, 5, 8):
        config = IlwpConfig.paper(bits=bits)
        assert estimate(model, config).total_bytes < estimate(before.float(), config).total_bytes
    if name != "shufflenet":
        assert all(quotient < 0.9 for quotient in list(report.aligned.values())[1:])


def test_which_layers_are_refused(example: Tensor) -> None:
    assert not align(network("mobilenet", example), example).refused
    assert not align(network("mobilenetv2", example), example).refused
    grouped = align(network("shufflenet", example), example)
    assert set(grouped.refused.values()) == {"a convolution in 2 groups reads or makes its channels"}
    shuffled = align(network("shufflenetv2", example), example)
    assert set(shuffled.refused) == {"features.7.side.0", "features.15.side.0"}
    assert all("torch-pruning cannot group its channels" in reason for reason in shuffled.refused.values())


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x * scale


def block(c_in: int, c_out: int, size: int = 3, bias: bool = False, norm: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(c_in, c_in * 2, 1), nn.ReLU()]
    layers += [nn.Conv2d(c_in * 2, c_in * 2, size, padding=size // 2, groups=c_in * 2, bias=bias)]
    layers += [nn.BatchNorm2d(c_in * 2)] if norm else []
    return nn.Sequential(*layers, nn.Hardswish(), SqueezeExcite(c_in * 2), nn.Conv2d(c_in * 2, c_out, 1))


def test_squeeze_excite_mixed_kernels_biases_and_classifier(example: Tensor) -> None:
    torch.manual_seed(0)
    blocks = [block(3, 8, 5, bias=True), block(8, 8), block(8, 8, 5), block(8, 12)]
    model = nn.Sequential(*blocks, nn.PReLU(12), nn.Flatten(), nn.Linear(12 * 16, 5))
    probe = example[:, :, :4, :4]
    settle(model, probe)
    expected = model(probe)
    report = align(model, probe)
    assert len(report.aligned) == 4 and not report.refused
    torch.testing.assert_close(model(probe), expected, rtol=1e-4, atol=1e-5)


def test_folded_batch_norm_permutes_only(example: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(block(3, 8, norm=False, bias=True), block(8, 8, norm=False, bias=True)).eval()
    norms = {
        n: m.weight.flatten(1).norm(dim=1)
        for n, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and m.groups > 1
    }
    report = align(model, example)
    assert len(report.aligned) == 2
    for name, norm in norms.items():
        after = model.get_submodule(name).weight.flatten(1).norm(dim=1)  # type: ignore[operator,union-attr]
        torch.testing.assert_close(after.sort().values, norm.sort().values)


class Leaky(nn.Module):
    """Its depthwise output is read before the batch norm too: its gains are not free, its order is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(3, 8), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        result: Tensor = self.last(self.norm(y) + y)
        return result


def test_what_changes_the_outputs_is_put_back(example: Tensor) -> None:
    torch.manual_seed(0)
    model = settle(Leaky(), example)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(example)
    report = align(model, example)
    assert set(report.refused) == {"second"} and "changes the outputs by" in report.refused["second"]
    torch.testing.assert_close(model(example), expected, rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before if n.startswith(("second", "norm", "last")))


def test_channels_that_two_layers_share_are_moved_once(example: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)
    ).eval()
    expected = model(example)
    report = align(model, example)
    assert report.refused == {"3": "its channels are also those of a layer that is aligned already"}
    torch.testing.assert_close(model(example), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["mobilenet", "mobilenetv2"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.filterwarnings("ignore:.*comes out worse than zeros")  # at one step for gains of all sizes
def test_random_channels(seed: int, name: str, scaled: bool) -> None:
    """Channels in random order, with random signs and, half of the time, gains over three orders of magnitude.

    Alignment is function-preserving; and of kernels of equal norm it never costs more bytes than before. (Where norms
    differ, one step for all spends few bits on the small ones and loses them; equal bits are then no equal terms.)
    """
    example = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    model = build_model(name, width=0.25)
    random_norms(model, seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.weight.data /= module.weight.data.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            if scaled:
                module.weight.data *= 2 * torch.randn(len(module.weight), 1, 1, 1).exp()
    settle(model, example)
    expected = copy.deepcopy(model).double()(example.double())
    sizes = [estimate(model, IlwpConfig.paper(bits=bits)).total_bytes for bits in (4, 8)]
    align(model, example)
    change = (copy.deepcopy(model).double()(example.double()) - expected).abs().max() / expected.abs().max()
    assert float(change) < 1e-3, "float32 rounding of weights, batch norms of tiny variance"
    if not scaled:
        assert all(
            estimate(model, IlwpConfig.paper(bits=b)).total_bytes <= s for b, s in zip((4, 8), sizes, strict=True)
        )


@pytest.mark.parametrize("name", ["mobilenet", "mobilenetv2", "shufflenetv2"])
def test_importance_brings_equals_together(name: str, example: Tensor) -> None:
    """For a later pruning: a kernel and its reference are about as important. The function stays the same, too."""

    def agreement(**options: Any) -> float:
        model = network(name, example)
        expected = copy.deepcopy(model).double()(example.double())
        report = align(model, example, **options)
        change = (copy.deepcopy(model).double()(example.double()) - expected).abs().max() / expected.abs().max()
        assert float(change) < 1e-4
        coupling = Coupling(model, example, tp.importance.MagnitudeImportance())
        layers = [layer for layer in report.aligned if layer not in report.refused]
        ranks = [coupling.importance(layer).argsort().argsort() / len(coupling.importance(layer)) for layer in layers]  # type: ignore[union-attr,arg-type]
        differences = [
            (own - before[torch.arange(len(own)) % len(before)]).abs() for before, own in itertools.pairwise(ranks)
        ]
        return float(torch.cat(differences).mean())

    assert agreement(importance=tp.importance.MagnitudeImportance()) < agreement() / 2


def test_frozen_parameters_and_modes_stay_as_they_are(example: Tensor) -> None:
    model = network("mobilenet", example, 0.25)
    model.requires_grad_(False)
    model.train()
    model.features[1].eval()  # type: ignore[index,union-attr]
    align(model, example)
    assert model.training and not model.features[1].training  # type: ignore[index,union-attr]
    assert not any(p.requires_grad for p in model.parameters())


def test_errors(example: Tensor) -> None:
    model = network("mobilenet", example, 0.25)
    with pytest.raises(ConfigError, match="mode 'collocated' or 'auto' and scope 'depthwise', got 'full'"):
        align(model, example, IlwpConfig(mode="full"))
    with pytest.raises(ChainError, match="no chain"):
        align(nn.Conv2d(3, 3, 3), example)
    with pytest.raises(TensorError, match="not finite"):
        align(model, example * float("nan"))
