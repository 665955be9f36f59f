"""One pass of calibration inputs through a model whose layers are quantized as they are reached.

Each batch holds every example twice: the first half runs through what is quantized already, the second through the
original layers. So each layer is quantized on the inputs that it will really get, towards the outputs that it gave
before, and each batch norm is fitted to both. Where the inputs are too many to be held at once, one pass is made for
each layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ilwp_plugin.errors import CalibrationError, IlwpError
from ilwp_plugin.method.error_feedback import Feedback, Moments
from ilwp_plugin.models.chains import call, unwrap
from ilwp_plugin.pipeline.calibration_inputs import map_tensors, read_inputs

__all__ = [
    "MEMORY_BYTES",
    "BatchNormMoments",
    "Calibrated",
    "Visitor",
    "calibrate",
    "is_batch_norm",
    "is_layer",
    "output_errors",
]

MEMORY_BYTES = 2 << 30
"""Activations that may be held at one time."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class BatchNormMoments:
    """Sums over a batch norm's inputs x in the quantized model and outputs y in the original; (channels,) float64."""

    count: int = 0
    x: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    y: Tensor | float = 0.0
    yy: Tensor | float = 0.0
    xy: Tensor | float = 0.0

    def add(self, quantized_input: Tensor, original_output: Tensor) -> None:
        """Add examples."""
        dims = [0, *range(2, quantized_input.dim())]

        def total(values: Tensor) -> Tensor:
            return values.mean(dims).double() * (values.numel() // values.shape[1])

        x, y = quantized_input, original_output
        self.count += x.numel() // x.shape[1]
        self.x, self.xx = self.x + total(x), self.xx + total(x * x)
        self.y, self.yy = self.y + total(y), self.yy + total(y * y)
        self.xy = self.xy + total(x * y)

    def fit(self, ordinary: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Mean and variance of x, mean and standard deviation of y, and the slope of y on x (NaN for a constant x).

        Args:
            ordinary: (channels,) variance of x in the original model. A thousandth of it damps the slope: a channel
                that quantization has left with next to no variance would be amplified without bound.
        """
        mean_x, mean_y = torch.as_tensor(self.x) / self.count, torch.as_tensor(self.y) / self.count
        variance = (torch.as_tensor(self.xx) / self.count - mean_x * mean_x).clamp(min=0)
        spread = (torch.as_tensor(self.yy) / self.count - mean_y * mean_y).clamp(min=0).sqrt()
        covariance = torch.as_tensor(self.xy) / self.count - mean_x * mean_y
        slope = torch.where(variance > 1e-12, covariance / (variance + 1e-3 * ordinary.double()), torch.nan)
        return mean_x, variance, mean_y, spread, slope


@dataclass(frozen=True)
class Calibrated:
    """What a calibration has done.

    Attributes:
        layers: names of the layers and batch norms that were reached.
        error: sum of the squared errors of the quantized model's outputs on the last batch, relative to their variance.
    """

    layers: set[str]
    error: float


class Visitor(Protocol):
    """Is called for each layer when it is reached, once, in order of execution."""

    def layer(self, name: str, module: nn.Module, feedback: Feedback) -> tuple[Tensor, Tensor | None]:
        """The new weight of a Conv2d or Linear, and its new bias."""

    def batch_norm(self, name: str, module: nn.Module, moments: BatchNormMoments) -> Mapping[str, Tensor]:
        """The new parameters and buffers of a batch norm, by name."""


class _Reached(Exception):
    """Stops a forward pass at the layer whose inputs are being collected."""


class _Site:
    """One layer of the working copy, with the original beside it."""

    def __init__(self, name: str, module: nn.Module, visitor: Visitor, at_once: bool) -> None:
        self.name, self.module, self.original = name, module, copy.deepcopy(module)
        self.visitor, self.at_once, self.done = visitor, at_once, False
        self.moments: Any = BatchNormMoments() if isinstance(module, _BATCH_NORMS) else Moments()

    def forward(self, inputs: Tensor) -> Tensor:
        half = len(inputs) // 2
        quantized, original = inputs[:half], inputs[half:]
        run = type(self.module).forward
        expected = run(self.original, original)
        if not self.done:
            if isinstance(self.moments, BatchNormMoments):
                self.moments.add(quantized, expected)
            else:
                self.moments.add(self.original, quantized, original)
            if not self.at_once:
                raise _Reached(self)
            self.finish()
        return torch.cat([run(self.module, quantized), expected])

    def finish(self) -> None:
        """Quantize the layer from what was collected."""
        if isinstance(self.moments, BatchNormMoments):
            values = dict(self.visitor.batch_norm(self.name, self.original, self.moments))
        else:
            assert isinstance(self.original.weight, Tensor)
            feedback = Feedback(self.moments, self.original.weight)
            weight, bias = self.visitor.layer(self.name, self.original, feedback)
            values = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        state = self.module.state_dict()
        for key, value in values.items():
            state[key].copy_(value)
        self.done, self.moments = True, None


@torch.no_grad()
def calibrate(
    model: nn.Module, inputs: Any, visitor: Visitor, layers: Collection[str], memory_bytes: int = MEMORY_BYTES
) -> Calibrated:
    """Quantize a model layer by layer on calibration inputs; the model itself is not changed.

    Args:
        model: the model. It has to treat the examples of a batch independently in eval mode.
        inputs: what the model is called with, see `calibration_inputs`.
        visitor: quantizes each layer.
        layers: names of the layers to quantize; all batch norms are visited.
        memory_bytes: of activations at one time, about.

    Returns:
        What was reached, and what it did to the outputs.

    Raises:
        CalibrationError: no inputs, the model does not run on them, or it mixes the examples of a batch.
    """
    model = copy.deepcopy(unwrap(model)).cpu().eval()
    examples = read_inputs(model, inputs)
    size = examples.size
    sites: dict[str, _Site] = {}
    per_example = _activation_bytes(model, examples.part(0, 1))
    held = max(1, min(size, memory_bytes // (4 * per_example)))
    batches = [examples.part(start, start + held) for start in range(0, size, held)]
    expected = _run(model, batches[-1])
    for name, module in model.named_modules():
        if (name in layers and is_layer(module)) or is_batch_norm(module):
            sites[name] = _Site(name, module, visitor, len(batches) == 1)
    with _patched(sites.values()):
        while True:
            waiting: _Site | None = None
            for part in batches:
                try:
                    result = _run(model, _twice(part))
                except _Reached as reached:
                    site: _Site = reached.args[0]
                    if waiting is not None and site is not waiting:
                        raise CalibrationError(
                            f"{type(model).__name__} runs its layers in an order that depends on the inputs: "
                            f"{waiting.name!r}, then {site.name!r}"
                        ) from None
                    waiting = site
            if waiting is None:
                break
            waiting.finish()
    if isinstance(result, Tensor) and isinstance(expected, Tensor):
        second = result[len(result) // 2 :]
        if second.shape != expected.shape or not torch.allclose(second, expected, rtol=1e-3, atol=1e-4):
            raise CalibrationError(
                f"{type(model).__name__} mixes the examples of a batch, so that it cannot be calibrated; "
                "leave out `calibration`"
            )
    found = map_tensors(lambda tensor: tensor[: len(tensor) // 2], result)
    return Calibrated({name for name, site in sites.items() if site.done}, _relative_error(found, expected))


_EXAMPLES, _FEW_EXAMPLES, _EXAMPLES_BYTES = 256, 32, 128 << 20
"""For the errors of outputs, which take a pass for each layer: so many, or fewer where their activations take more."""


@torch.no_grad()
def output_errors(
    model: nn.Module,
    inputs: Any,
    weights: Mapping[str, Tensor],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """How much the outputs of a model change when one layer has another weight, for each layer alone.

    The mean output of each channel of the layer is kept, as batch norms and biases will keep it.

    Args:
        model: the model, see `calibrate`; it is not changed.
        inputs: likewise; some are taken, evenly spaced.
        weights: other weights, by name of the layer.
        progress: is told each layer, how many were before it, and how many there are.

    Returns:
        Squared errors relative to the variance of the outputs, by name of the layer.

    Raises:
        CalibrationError: the model does not run on the inputs, or gives no tensor.
    """
    model = copy.deepcopy(unwrap(model)).cpu().eval()
    examples = read_inputs(model, inputs)
    enough = min(_EXAMPLES, max(_FEW_EXAMPLES, _EXAMPLES_BYTES // _activation_bytes(model, examples.part(0, 1))))
    every = max(1, examples.size // enough)
    batch = map_tensors(lambda tensor: tensor[::every][:enough], examples.batch)
    means: dict[str, Tensor] = {}

    def mean(output: Tensor) -> Tensor:
        return output.mean([0, *range(2, output.dim())], keepdim=True)

    def remember(name: str) -> Callable[..., None]:
        return lambda module, _, output: means.update({name: mean(output)})

    modules = {name: model.get_submodule(name) for name in weights}
    hooks = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    expected = _run(model, batch)
    for hook in hooks:
        hook.remove()
    if not _tensors(expected):
        raise CalibrationError(f"{type(model).__name__} gives no floating-point tensor whose errors could be measured")
    errors = {}
    for number, (name, module) in enumerate(modules.items()):
        if progress is not None:
            progress(name, number, len(modules))
        own = getattr(module, "weight")  # noqa: B009
        before = own.clone()
        own.copy_(weights[name])
        hook = module.register_forward_hook(lambda _, __, output, name=name: output - mean(output) + means[name])
        found = _run(model, batch)
        hook.remove()
        own.copy_(before)
        errors[name] = _relative_error(found, expected)
    return errors


def _relative_error(found: Any, expected: Any) -> float:
    """Squared error relative to the variance of what is expected, summed over the floating-point tensors."""
    pairs = zip(_tensors(found), _tensors(expected), strict=True)
    return sum(float((a - b).square().sum() / (b - b.mean()).square().sum().clamp(min=1e-30)) for a, b in pairs)


def _tensors(outputs: Any) -> list[Tensor]:
    return [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]


def is_layer(module: nn.Module) -> bool:
    """Whether a module can be quantized with error feedback."""
    return isinstance(module, (nn.Conv2d, nn.Linear))


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm whose scale and shift are its own and fixed at inference."""
    return isinstance(module, _BATCH_NORMS) and module.affine and module.track_running_stats


@contextmanager
def _patched(sites: Iterable[_Site]) -> Iterator[None]:
    sites = list(sites)
    for site in sites:
        site.module.forward = site.forward
    try:
        yield
    finally:
        for site in sites:
            del site.module.forward


def _run(model: nn.Module, inputs: Any) -> Any:
    try:
        return call(model, inputs)
    except (_Reached, IlwpError):
        raise
    except Exception as error:  # the user's forward can fail in any way
        raise CalibrationError(
            f"{type(model).__name__} does not run on the calibration inputs ({type(error).__name__}: {error}); "
            "give batches of inputs as the model takes them, without labels"
        ) from error


def _activation_bytes(model: nn.Module, example: Any) -> int:
    """The largest output of a layer for one example."""
    largest = 1
    hooks = []

    def measure(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    for module in model.modules():
        hooks.append(module.register_forward_hook(measure))
    try:
        _run(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def _twice(batch: Any) -> Any:
    return map_tensors(lambda tensor: torch.cat([tensor, tensor]), batch)
