"""Calibration inputs as people have them: what is accepted, and what is said about the rest."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.errors import CalibrationError, ConfigError
from ilwp_plugin.pipeline import calibration_inputs
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, read_inputs

X, Y = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


class Two(Net):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return super().forward(x + shift)


class Either(Net):
    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(x if shift is None else x + shift)


class Loss(Net):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        outputs = super().forward(x)
        return outputs if y is None else nn.functional.cross_entropy(outputs, y)


def first(batch: Any) -> Any:
    return batch[0]


LOADER = DataLoader(TensorDataset(X, Y), 16)


@pytest.mark.parametrize(
    ("calibration", "pick"),
    [
        (X, None),
        ((X,), None),
        ({"x": X}, None),
        (X.numpy(), None),
        ([X[:7], X[7:]], None),
        (X.split(16), None),
        (X.split(20), None),
        (tuple({"x": x} for x in X.split(16)), None),
        ((x for x in X.split(16)), None),
        ((x for x, _ in LOADER), None),
        (DataLoader(TensorDataset(X), 16), None),
        (TensorDataset(X), None),
        (LOADER, first),
        (tuple(LOADER), first),
        (TensorDataset(X, Y), first),
        (({"image": x, "label": y} for x, y in LOADER), lambda batch: batch["image"]),
        ((X, Y), first),
        ([[X, Y]], first),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_read(calibration: Any, pick: Any) -> None:
    read = read_inputs(Net(), calibration, pick)
    (tensor,) = tree_leaves(read.batch)
    assert read.size == 40 and torch.equal(tensor, X)
    assert read_inputs(Net(), read) is read


def test_arguments_are_told_from_batches_by_what_the_model_runs_with() -> None:
    for model, calibration, arguments in (
        (Two(), (X, X), 2),
        (Two(), [(X, X)], 2),
        (Two(), DataLoader(TensorDataset(X, X), 16), 2),
        (Loss(), (X, Y), 2),
        (Loss(), LOADER, 2),
        (Either(), [(X, X)], 2),
        (Either(), X.split(16), 0),  # the last is smaller, so it can be no argument beside the others
    ):
        batch = read_inputs(model, calibration).batch
        assert (len(batch) if isinstance(batch, tuple) else 0) == arguments
    with pytest.raises(CalibrationError, match=r"both as arguments and as batches; write \[\(a, b\)\]"):
        read_inputs(Either(), (X, X))


class Once:
    """An iterable that counts how often it is read."""

    def __init__(self) -> None:
        self.times = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.times += 1
        yield from X.split(16)


def test_read_once_also_where_files_are_searched() -> None:
    config = IlwpConfig.whole_model(0.05)
    size = compress(Net().eval(), config, calibration=(x for x in X.split(16))).ledger.file_bytes
    once = Once()
    found = compress(Net().eval(), IlwpConfig.whole_model(), calibration=once, target_bytes=size)
    assert found.ledger.file_bytes <= size and once.times == 1


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (LOADER, r"a list of 2 .*runs with a part of each batch: compress\(.*inputs=lambda batch: batch\[0\]\)"),
        ((X, Y), r"a tuple of 2 .*batch\[0\]"),
        ([{"image": X, "label": Y}], r"a dict with 'image', 'label' .*inputs=lambda batch: batch\['image'\]"),
        (tuple(X), r"torch.stack\(examples\) makes one"),
        ([{"x": X, "label": Y}], r"inputs=lambda batch: \{'x': batch\['x'\]\}"),
        ([X, Y], r"do not fit together.*\[\(x, y\)\] is one batch of two arguments"),
        ([X[:4], X[:4, :, 1:]], "give all examples one size"),
        ([{"x": X}, {"x": X, "y": X}], "different keys"),
        (list(X), r"that is one example, and the model takes batches: torch.stack\(examples\) makes one"),
        ([X[:, 0]], r"does not run on the calibration inputs, a tensor of shape \(40, 8, 8\)"),
        ([], "no inputs; a generator gives its batches only once"),
        (X[:0], "no examples"),
        (torch.tensor(1.0), "number of examples as its first dimension"),
        ({}, "no tensor"),
        (3, "expected a tensor, batches in a list, a DataLoader or a generator, got a int"),
        ("images.pt", "got a str"),
        ([object()], "expected tensors in lists, tuples or dicts, got a object"),
        (X.to("meta"), "meta device"),
        (X.where(torch.arange(40).view(-1, 1, 1, 1) % 20 > 0, torch.nan), "NaN in 2 of 40 examples"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_refused(calibration: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read_inputs(Net(), calibration)


def test_the_call_that_works_is_said_for_several_arguments() -> None:
    with pytest.raises(CalibrationError, match=r"inputs=lambda batch: batch\[:2\]\)"):
        read_inputs(Two(), [(X, X, Y)])
    with pytest.raises(CalibrationError, match=r"batch: \{'shift': batch\['shift'\], 'x': batch\['x'\]\}"):
        read_inputs(Two(), [{"shift": X, "label": Y, "x": X}])
    with pytest.raises(CalibrationError, match=r"pick what it takes from each batch: .*batch: \(batch\[0\], ...\)"):
        read_inputs(Two(), [(Y, Y)])


def test_what_is_picked_has_to_be_what_the_model_takes() -> None:
    with pytest.raises(CalibrationError, match="`inputs` fails on a list of 2 .KeyError: 'image'"):
        read_inputs(Net(), LOADER, lambda batch: {}["image"])
    with pytest.raises(CalibrationError, match="`inputs` has to return what the model is called with"):
        read_inputs(Net(), LOADER, lambda batch: batch[1])
    with pytest.raises(ConfigError, match="`calibration`, which is not given"):
        compress(Net(), IlwpConfig(weight_step=0.1), inputs=first)


def test_endless_inputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_inputs, "MOST_BYTES", 10 * X.nbytes)
    with pytest.raises(CalibrationError, match="itertools.islice"):
        read_inputs(Net(), iter(lambda: X, None))


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(CalibrationError, match="'conv.weight' is on the meta device and has no values"):
        read_inputs(Net().to("meta"), X)
    model = Net()
    model.head.to("meta")
    with pytest.raises(CalibrationError, match="'head.weight' is on the meta device"):
        read_inputs(model, X)
    model.head = nn.LazyLinear(5)
    with pytest.raises(CalibrationError, match="'head.weight' belongs to a lazy layer"):
        read_inputs(model, X)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read_inputs(model, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_fingerprint_tells_inputs_apart() -> None:
    changed = X.clone()
    changed[-1, -1, -1, -1] += 1e-6
    batches = [X, changed, X[:-1], (X,), {"x": X}, {"y": X}, X.half(), X > 0, {"x": X, "flag": True}, X.bfloat16()]
    prints = [CalibrationInputs(batch, 40).fingerprint() for batch in batches]
    assert len(set(prints)) == len(prints)
    assert CalibrationInputs(X.clone(), 40).fingerprint() == prints[0]
    assert np.unique([len(p) for p in prints]).tolist() == [32]
