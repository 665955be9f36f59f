"""Calibration of models as people have them: whatever they return, however they call their layers."""

import copy
import functools
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from ilwp_plugin import CompressedModel, IlwpConfig, compress, loads
from ilwp_plugin.errors import CalibrationError, IlwpWarning, TensorError
from ilwp_plugin.models.borrowing import copied
from ilwp_plugin.pipeline import calibration as calibrating
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs

X = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))
MEASURED = IlwpConfig.whole_model(0.02)
EQUAL = IlwpConfig.whole_model(0.02, step_allocation="equal")


class Net(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential()
        for i in range(2):
            self.body.add_module(f"depthwise{i}", nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
            self.body.add_module(f"norm{i}", nn.BatchNorm2d(channels))
            self.body.add_module(f"pointwise{i}", nn.Conv2d(channels, channels, 1))
            self.body.add_module(f"relu{i}", nn.ReLU(inplace=True))
        self.head = nn.Linear(channels, 5)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IlwpWarning)
        yield


@functools.cache
def plain(config: IlwpConfig = EQUAL) -> bytes:
    return compress(Net(), config, calibration=X).to_bytes()


@torch.no_grad()
def error(compressed: CompressedModel, model: nn.Module, inputs: Any = X) -> float:
    expected = model(inputs)
    restored = copy.deepcopy(model)
    loads(compressed.to_bytes()).apply_to(restored)
    return float((restored.eval()(inputs) - expected).square().mean() / expected.square().mean())


def test_layers_called_by_keyword() -> None:
    class Named(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(input=self.body(self.stem(input=x)).mean((2, 3)))

    assert compress(Named(), EQUAL, calibration=X).to_bytes() == plain()


def hooked(module: nn.Module) -> None:
    """As accelerate does it."""
    before = module.forward

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return before(*args, **kwargs)

    module.forward = functools.update_wrapper(functools.partial(forward, module), before)  # type: ignore[method-assign]


def test_forwards_patched_on_the_instance() -> None:
    model = Net()
    for module in model.modules():
        hooked(module)
    before = {name: module.forward for name, module in model.named_modules()}
    assert compress(model, MEASURED, calibration=X).to_bytes() == plain(MEASURED)
    assert all(module.forward is before[name] for name, module in model.named_modules())


Pair = namedtuple("Pair", ["logits", "features"])


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y, "loss": y.mean()},
        lambda y: Output(y, y.mean()),
        lambda y: Pair(y, y.mean()),
        lambda y: [y, None],
        lambda y: SimpleNamespace(logits=y),
        lambda y: F.cross_entropy(y, torch.zeros(len(y), dtype=torch.long)),
    ],
    ids=["dict", "dataclass", "namedtuple", "list", "object", "loss"],
)
@pytest.mark.parametrize("config", [EQUAL, MEASURED], ids=["equal", "measured"])
def test_whatever_a_model_returns(wrap: Callable[[Tensor], Any], config: IlwpConfig) -> None:
    class Wrapped(Net):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    assert compress(Wrapped(), config, calibration=X).to_bytes() == plain(config)


def test_a_model_that_can_be_neither_copied_nor_moved() -> None:
    class Fixed(Net):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no copies")

        def _apply(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("stays on its device")

    assert compress(Fixed(), MEASURED, calibration=X).to_bytes() == plain(MEASURED)
    with pytest.raises(TensorError, match="Fixed cannot be copied .RuntimeError: no copies."):
        compress(Fixed(), EQUAL, calibration=X, evaluate=lambda model: 0.0, target_bytes=5000)


def test_inputs_go_to_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    device, found, part = torch.device("cpu", 0), set[Any](), CalibrationInputs.part

    def spied(self: CalibrationInputs, start: int, stop: int, device: torch.device | None = None) -> Any:
        found.add(device)
        return part(self, start, stop, device)

    monkeypatch.setattr(CalibrationInputs, "part", spied)
    for module in ("compress", "calibration", "probing"):
        monkeypatch.setattr(f"ilwp_plugin.pipeline.{module}.device_of", lambda model: device)
    assert compress(Net(), MEASURED, calibration=X).to_bytes() == plain(MEASURED)
    assert found == {device}


def test_masks_left_on() -> None:
    model = Net()
    prune.l1_unstructured(model.body.pointwise1, "weight", amount=0.5)
    model.cache = model.stem.weight * 2  # type: ignore[assignment]
    compressed = compress(model, EQUAL, calibration=X)
    mask = {"body.pointwise1.weight_mask": "a buffer or a mask, no parameter"}
    assert mask.items() <= compressed.left.items() and "body.pointwise1.weight_orig" in compressed.quantized
    assert mask.items() <= compress(model.state_dict()).left.items()
    restored = copied(model)
    compressed.apply_to(restored)
    with torch.no_grad():
        expected = model(X)
        assert float((restored(X) - expected).square().mean() / expected.square().mean()) < 1e-3
    prune.l1_unstructured(model.body.depthwise1, "weight", amount=0.5)
    with pytest.raises(TensorError, match="torch.nn.utils.prune.remove"):
        compress(model, EQUAL, calibration=X)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.first, self.second = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.out = nn.Linear(16, 20, bias=False)
        self.out.weight = self.words.weight
        self.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for layer in (self.first, self.second, self.first):
            x = x + layer(x).relu()
        return self.out(x)


@pytest.mark.parametrize("config", [EQUAL, MEASURED], ids=["equal", "measured"])
def test_tied_layers(config: IlwpConfig) -> None:
    """One module called twice, and two modules that share their weight."""
    tokens = torch.randint(20, (64, 7), generator=torch.Generator().manual_seed(0))
    assert error(compress(Tied(), config, calibration=tokens), Tied(), tokens) < 2e-3


def test_examples_may_be_counted_by_another_dimension_inside() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.rnn, self.head = nn.Conv2d(3, 8, 3), nn.LSTM(80, 8), nn.Linear(8, 5)
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            steps = self.conv(x).permute(3, 0, 1, 2).flatten(2)
            return self.head(self.rnn(steps)[0])

    for config in (EQUAL, MEASURED):
        with pytest.warns(IlwpWarning, match="^'rnn.weight_hh_l0', 'rnn.weight_ih_l0': rounded alone"):
            compressed = compress(Recurrent(), config, calibration=X)
        assert error(compressed, Recurrent()) < 3e-3


@pytest.mark.parametrize("config", [EQUAL, MEASURED], ids=["equal", "measured"])
def test_examples_may_be_repeated_along_a_dimension(config: IlwpConfig) -> None:
    class Windows(Net):
        """Each image as four windows, or as two turned copies; in the order of the windows, not of the images."""

        def forward(self, x: Tensor) -> Any:
            y = self.stem(x)
            quarters = [y[:, :, i::2, j::2] for i in range(2) for j in range(2)]
            y = self.body(torch.cat(quarters)).mean((2, 3))
            y = torch.cat([self.head(y), self.head(y).flip(1)])
            return sum(y.chunk(8))

    class Loss(Windows):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).square().mean()

    found = compress(Windows(), config, calibration=X)
    assert error(found, Windows()) < 1e-3
    assert compress(Loss(), config, calibration=X).quantized.keys() == found.quantized.keys()


def test_norms_that_are_not_what_the_inputs_are() -> None:
    """Statistics of other data, or none yet, do not make a channel look as if it had died."""
    model, config = Net(), IlwpConfig.whole_model(0.002)
    with torch.no_grad():
        spread = float(model(X).std(0).mean() / model(X).abs().mean())
    assert spread < 0.01, "next to offsets that are the same for all examples, the outputs hardly differ"
    restored = copy.deepcopy(model)
    compress(model, config, calibration=X).apply_to(restored)
    with torch.no_grad():
        expected, found = (y - y.mean(0) for y in (model(X), restored(X)))
    assert float((found - expected).square().sum() / expected.square().sum()) < 0.01


def test_errors_are_measured_against_what_differs_between_examples() -> None:
    class Offset(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) + 3 * torch.arange(5)

    weights = {"head": torch.zeros(5, 8), "stem": Net().stem.weight * 1.01}
    assert calibrating.output_errors(Offset(), X, weights) == pytest.approx(
        calibrating.output_errors(Net(), X, weights), rel=0.02
    )
    assert calibrating.output_errors(Net(), X, weights)["head"] == pytest.approx(1, rel=0.02)


def test_layers_that_see_single_examples_are_rounded_alone() -> None:
    class OneByOne(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.head(y) for y in self.body(self.stem(x)).mean((2, 3))])

    with pytest.warns(IlwpWarning, match="'head': rounded alone"):
        compressed = compress(OneByOne(), EQUAL, calibration=X)
    assert error(compressed, OneByOne()) < 1e-3


def test_a_model_that_keeps_exceptions_is_calibrated_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Catching(Net):
        def forward(self, x: Tensor) -> Any:
            try:
                return super().forward(x)
            except Exception:
                return x

    limited = functools.partial(calibrating.calibrate, memory_bytes=1 << 19)
    monkeypatch.setattr("ilwp_plugin.pipeline.quantize.calibrate", limited)
    assert error(compress(Catching(), EQUAL, calibration=X), Net()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    assert error(compress(model, EQUAL, calibration=X.to(dtype)), model, X.to(dtype)) < 2e-3


def test_synchronised_batch_norms_are_batch_norms() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Net())
    assert compress(model, EQUAL, calibration=X).to_bytes() == plain()


def test_models_without_layers_of_python_are_rounded_alone() -> None:
    exported = torch.export.export(Net(), (X[:2],), dynamic_shapes={"x": {0: torch.export.Dim("b", min=2)}}).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        models = [exported, torch.jit.trace(Net(), X[:2])]
    for model in models:
        with pytest.warns(IlwpWarning, match="rounded alone"):
            assert "head.weight" in compress(model, EQUAL, calibration=X).quantized


def test_a_model_that_needs_gradients() -> None:
    class Saliency(Net):
        def forward(self, x: Tensor) -> Any:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(super().forward(x).sum(), x)
            return super().forward(x).detach() + gradient.mean((1, 2, 3))[:, None]

    assert error(compress(Saliency(), EQUAL, calibration=X), Net()) < 1e-3


class Failing(Net):
    """Fails in the last layer, when everything else is patched."""

    fails = False

    def forward(self, x: Tensor) -> Any:
        result = super().forward(x)
        if self.fails and len(x) > 4:
            raise ValueError("no more\nthan four")
        return result


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = Failing().train()
    model.fails = fails
    model.register_buffer("seen", torch.zeros(()))
    model.register_forward_hook(lambda module, inputs, output: module.seen.add_(1) and None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = {name: set(vars(module)) for name, module in model.named_modules()}
    if fails:
        with pytest.raises(CalibrationError, match="does not run on a batch .*.ValueError: no more than four"):
            compress(model, MEASURED, calibration=X)
    else:
        compress(model, MEASURED, calibration=X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name != "seen")
    assert own == {name: set(vars(module)) for name, module in model.named_modules()}
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert sum(len(module._forward_hooks) for module in model.modules()) == 1
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_error_of_ours_is_not_the_model_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(calibrating, "Feedback", fail)
    with pytest.raises(ZeroDivisionError):
        compress(Net(), EQUAL, calibration=X)


def refused(model: nn.Module) -> str:
    with pytest.raises((CalibrationError, TensorError)) as caught:
        compress(model.eval(), EQUAL, calibration=X)
    return str(caught.value)


def test_what_cannot_be_calibrated_is_refused_by_what_it_is() -> None:
    class Mixing(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.stem(x)
            return self.head(self.body(y - y.mean(0)).mean((2, 3)))

    assert "mixes the examples of a batch: up to 'body.depthwise0'" in refused(Mixing())
    model = Net()
    model.body.norm1 = nn.BatchNorm2d(8, track_running_stats=False)
    assert "up to 'body.pointwise1' what comes from one example" in refused(model)
    assert "'body.norm1' takes its statistics from the batch" in refused(model)

    class Noisy(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x + torch.randn_like(x))

    assert "does not compute the same twice in eval mode" in refused(Noisy())

    class Turning(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).flip(0)

    assert "mixes the examples of a batch: up to its outputs" in refused(Turning())


def test_nan_and_infinity_are_named() -> None:
    model = Net()
    model.body.norm1.running_var[3] = torch.nan
    assert "tensor 'body.norm1.running_var': 1 of its 8 values are NaN or infinite" in refused(model)
    model = Net()
    with torch.no_grad():
        model.head.weight[0] = torch.inf
    assert "tensor 'head.weight': 8 of its 40 values are NaN or infinite" in refused(model)
    model = Net()
    model.body.norm1.running_var.fill_(-1)

    assert "NaN or infinity at 'body.norm1' on the calibration inputs: 'body.norm1'" in refused(model)

    with pytest.raises(CalibrationError, match="NaN or infinity at 'stem' on the calibration inputs, which hold inf"):
        compress(Net(), EQUAL, calibration=X.where(X < 3, torch.inf))

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    model = Net()
    model.body.relu0 = Root()
    assert "NaN or infinity at 'body.depthwise1' on the calibration inputs: 'body.relu0' (Root)" in refused(model)
