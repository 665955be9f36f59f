"""Example inputs in every form in which INC's users have them, and what calibrates."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ilwp_integrations.neural_compressor import IlwpConfig, attached, load, save, stack
from ilwp_integrations.neural_compressor.inputs import ENOUGH, MOST, arguments_of, read_examples
from neural_compressor.torch.quantization import DynamicQuantConfig, convert, prepare, quantize
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ilwp_plugin import CompressedModel, compress
from ilwp_plugin.errors import CalibrationError, ConfigError


class Named(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False),
            *(
                m
                for _ in range(3)
                for m in (nn.Conv2d(16, 16, 3, groups=16, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))
            ),
        )
        self.classifier = nn.Linear(16, 4)

    def forward(self, image: Tensor, scale: Tensor, offset: float = 0.0) -> Tensor:
        logits: Tensor = self.classifier(self.features(image).mean((2, 3))) * scale + offset
        return logits


@pytest.fixture
def named() -> nn.Module:
    torch.manual_seed(0)
    return Named().eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2 * ENOUGH, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def scale() -> Tensor:
    return torch.rand(2 * ENOUGH, 1, generator=torch.Generator().manual_seed(2)) + 0.5


pytestmark = pytest.mark.filterwarnings("ignore::ilwp_plugin.errors.IlwpWarning")  # random weights


def generated(*tensors: Tensor) -> Iterator[Any]:
    yield from zip(*(t.split(20) for t in tensors), strict=True)


FORMS: dict[str, Any] = {
    "arguments": lambda x, s: (x, s),
    "list of arguments": lambda x, s: [x, s],
    "dict": lambda x, s: {"image": x, "scale": s},
    "other order": lambda x, s: {"scale": s, "image": x},
    "batches": lambda x, s: list(generated(x, s)),
    "generator": generated,
    "loader": lambda x, s: DataLoader(TensorDataset(x, s), batch_size=20),
    "loader of dicts": lambda x, s: DataLoader(
        [{"image": a, "scale": b} for a, b in zip(x, s, strict=True)], batch_size=20
    ),
    "with labels": lambda x, s: DataLoader([((a, b), 7) for a, b in zip(x, s, strict=True)], batch_size=20),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_traces_and_calibrates(named: nn.Module, image: Tensor, scale: Tensor, form: str) -> None:
    expected = compress(copy.deepcopy(named), calibration=[(image, scale)])
    quantized = quantize(named, IlwpConfig(), example_inputs=FORMS[form](image, scale))
    stored = attached(quantized).compressed.state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(stored[name], tensor, msg=name)


@pytest.mark.parametrize("form", ["arguments", "other order", "loader", "with labels"])
def test_every_form_exports(named: nn.Module, image: Tensor, scale: Tensor, form: str, tmp_path: Path) -> None:
    fresh = copy.deepcopy(named)
    dynamic = DynamicQuantConfig(w_granularity="per_channel")
    graph = stack(named, [IlwpConfig(), dynamic], FORMS[form](image, scale))
    ledger = save(graph, tmp_path)
    restored = load(tmp_path, fresh, FORMS[form](image[:4], scale[:4]))
    assert torch.equal(restored(image, scale), graph(image, scale))
    assert torch.equal(restored(image=image, scale=scale), graph(image, scale))
    assert ledger.file_bytes < 0.6 * sum(tensor.nbytes for tensor in fresh.state_dict().values())


def test_few_examples_trace_and_do_not_calibrate(mobilenet: nn.Module, images: Tensor) -> None:
    """A file that fits four images alone is small, and its model is none any more."""
    expected = compress(copy.deepcopy(mobilenet)).state_dict()
    quantized = quantize(copy.deepcopy(mobilenet), IlwpConfig(), example_inputs=images)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in quantized.state_dict().items())
    asked = quantize(copy.deepcopy(mobilenet), IlwpConfig(dead_zone=0.6), example_inputs=images)
    assert not torch.equal(asked.classifier.weight, expected["classifier.weight"]), "what needs them gets them"
    with pytest.raises(ConfigError, match="dead_zone: 0.6 needs calibration inputs"):
        quantize(mobilenet, IlwpConfig(dead_zone=0.6))


def test_what_the_prepared_model_is_run_with_calibrates(mobilenet: nn.Module, images: Tensor) -> None:
    """As INC's users calibrate: by `run_fn`, or between `prepare` and `convert`."""
    mobilenet.eval()
    many = torch.cat([images + 0.1 * number for number in range(ENOUGH // 4)])
    expected = compress(copy.deepcopy(mobilenet), calibration=many)

    def same(compressed: CompressedModel) -> bool:
        state = expected.state_dict()
        return all(torch.equal(tensor, state[name]) for name, tensor in compressed.state_dict().items())

    def calibrate(model: nn.Module) -> None:
        for batch in many.split(8):
            model(batch)

    assert same(attached(quantize(copy.deepcopy(mobilenet), IlwpConfig(), run_fn=calibrate)).compressed)
    prepared = prepare(copy.deepcopy(mobilenet), IlwpConfig(), inplace=False)
    calibrate(prepared)
    converted = convert(prepared, inplace=False)
    assert same(attached(converted).compressed)
    assert attached(prepared).quantizer is not None and not converted._forward_pre_hooks

    def train(model: nn.Module) -> None:
        calibrate(model)
        with torch.no_grad():
            model.classifier.bias.add_(1)

    trained = quantize(copy.deepcopy(mobilenet), IlwpConfig(), run_fn=train)
    assert not same(attached(trained).compressed), "what was trained keeps what it has trained with"


def test_what_is_called_in_several_ways_calibrates(named: nn.Module, image: Tensor, scale: Tensor) -> None:
    expected = compress(copy.deepcopy(named), calibration=[{"image": image, "scale": scale}]).state_dict()

    def calibrate(model: nn.Module) -> None:
        for x, s in generated(image, scale):
            model(x, scale=s)

    quantized = quantize(named, IlwpConfig(), run_fn=calibrate)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in quantized.state_dict().items())


def test_a_loader_is_not_read_whole(mobilenet: nn.Module, images: Tensor) -> None:
    read = []

    def endless() -> Iterator[Tensor]:
        while True:
            read.append(len(images))
            yield images

    examples = read_examples(mobilenet, endless())
    assert examples.calibration is not None and examples.calibration.size == sum(read) == MOST


def test_clear_errors(mobilenet: nn.Module, named: nn.Module, images: Tensor) -> None:
    with pytest.raises(CalibrationError, match="expected a tensor, arguments in a tuple or a dict.*got a int"):
        read_examples(mobilenet, 3)
    with pytest.raises(CalibrationError, match="MobileNet does not run on the calibration inputs"):
        quantize(mobilenet, IlwpConfig(), example_inputs=DataLoader([torch.zeros(5)] * 4))
    with pytest.raises(ConfigError, match="Named: missing a required argument: 'scale'"):
        arguments_of(named, {"image": images})

    class ByName(nn.Module):
        def forward(self, *, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ConfigError, match=r"\['x'\] of ByName can be given by name only"):
        arguments_of(ByName(), {"x": images})
    assert arguments_of(named, {"scale": 1, "image": images}) == (images, 1)
