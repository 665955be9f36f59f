"""One pass of calibration inputs through a model whose layers are quantized as they are reached.

Each batch holds every example twice: the first half runs through what is quantized already, the second through the
original layers. So each layer is quantized on the inputs that it will really get, towards the outputs that it gave
before, and each batch norm is fitted to both. Where the inputs are too many to be held at once, one pass is made for
each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ilwp_plugin.errors import CalibrationError, IlwpError, TensorError
from ilwp_plugin.method.error_feedback import Feedback, Layer, Moments, at_least_single
from ilwp_plugin.models.borrowing import borrowed, holding, on_cpu, own_tensors, place_of
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.models.surroundings import exact
from ilwp_plugin.models.torch_network import is_batch_norm
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, device_of, map_tensors, read_inputs
from ilwp_plugin.pipeline.probing import Layout, Probed, first_tensor, floating, probe, twice

__all__ = [
    "MEMORY_BYTES",
    "BatchNormMoments",
    "Calibrated",
    "Visitor",
    "calibrate",
    "is_layer",
    "output_errors",
]

MEMORY_BYTES = 2 << 30
"""Activations that may be held at one time."""


@dataclass
class BatchNormMoments:
    """Sums over a batch norm's inputs x in the quantized model, inputs o and outputs y in the original; (channels,).

    All but the mean are of differences from the mean of the first batch, since they may vary little around it.
    """

    count: int = 0
    first: tuple[Tensor, ...] = ()
    x: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    y: Tensor | float = 0.0
    yy: Tensor | float = 0.0
    xy: Tensor | float = 0.0
    o: Tensor | float = 0.0
    oo: Tensor | float = 0.0

    def add(self, quantized_input: Tensor, original_input: Tensor, original_output: Tensor) -> None:
        """Add examples."""
        dims = [0, *range(2, quantized_input.dim())]

        def total(values: Tensor) -> Tensor:
            return values.mean(dims).cpu().double() * (values.numel() // values.shape[1])

        given = [at_least_single(values) for values in (quantized_input, original_input, original_output)]
        if not self.first:
            self.first = tuple(values.mean(dims, keepdim=True) for values in given)
        x, o, y = (values - mean for values, mean in zip(given, self.first, strict=True))
        self.count += x.numel() // x.shape[1]
        self.x, self.xx = self.x + total(x), self.xx + total(x * x)
        self.o, self.oo = self.o + total(o), self.oo + total(o * o)
        self.y, self.yy = self.y + total(y), self.yy + total(y * y)
        self.xy = self.xy + total(x * y)

    @property
    def finite(self) -> bool:
        """Whether neither NaN nor infinity was among them."""
        return all(bool(torch.as_tensor(value).isfinite().all()) for value in (self.xx, self.oo, self.yy))

    def fit(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Mean and variance of x, mean and standard deviation of y, and the slope of y on x (NaN for a constant x).

        A thousandth of the variance of o damps the slope: a channel that quantization has left with next to no variance
        would be amplified without bound.
        """
        mean_x, mean_o, mean_y = (torch.as_tensor(total) / self.count for total in (self.x, self.o, self.y))
        variance, ordinary, square = (
            (torch.as_tensor(squares) / self.count - mean * mean).clamp(min=0)
            for squares, mean in ((self.xx, mean_x), (self.oo, mean_o), (self.yy, mean_y))
        )
        covariance = torch.as_tensor(self.xy) / self.count - mean_x * mean_y
        damped = variance + DAMPING * ordinary
        slope = torch.where(damped > 0, covariance / damped, torch.nan)
        first_x, _, first_y = (mean.flatten().cpu().double() for mean in self.first)
        return first_x + mean_x, variance, first_y + mean_y, square.sqrt(), slope


DAMPING = 1e-3
"""See `BatchNormMoments.fit`."""


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
        """The new weight of a convolution or Linear, and its new bias."""

    def batch_norm(self, name: str, module: nn.Module, moments: BatchNormMoments) -> Mapping[str, Tensor]:
        """The new parameters and buffers of a batch norm, by name."""


class _Reached(BaseException):
    """Stops a forward pass at the layer whose inputs are being collected; no `except Exception` of a model keeps it."""


class _Failed(BaseException):
    """Takes an error of ours past the model, whose fault it is not."""


class _Site:
    """A layer that runs in two halves: through what is quantized already, and as it is.

    Args:
        name: of the layer.
        module: the layer.
        layout: where its inputs and outputs keep the examples.
        values: new tensors of the model, by the place of the old ones; all sites share them.
        visitor: quantizes the layer when it is reached; None for one that merely shares a tensor with such a layer.
        at_once: whether one batch holds all examples.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        layout: Layout,
        values: dict[Any, Tensor],
        visitor: Visitor | None = None,
        at_once: bool = True,
    ) -> None:
        self.name, self.module, self.done = name, module, visitor is None
        self._inner, self._layout, self._values = module.forward, layout, values
        self._visitor, self._at_once = visitor, at_once
        self._moments: Any = BatchNormMoments() if is_batch_norm(module) else Moments()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Both halves of a batch; arguments that do not count the examples go to both."""
        given = first_tensor((args, kwargs))
        assert given is not None
        dim, length = self._layout.dim, given.shape[self._layout.dim]

        def half(number: int) -> Any:
            def take(leaf: Any) -> Any:
                counts = isinstance(leaf, Tensor) and leaf.dim() > dim and leaf.shape[dim] == length
                return self._layout.halves(leaf)[number] if counts else leaf

            return tree_map(take, (args, kwargs))

        quantized, original = half(0), half(1)
        expected = self._inner(*original[0], **original[1])
        if not self.done:
            self._reach(first_tensor(quantized), first_tensor(original), expected)
        with holding(self.module, self._values):
            found = self._inner(*quantized[0], **quantized[1])
        return map_tensors(self._layout.joined, found, expected)

    @exact()
    @torch.no_grad()
    def _reach(self, quantized: Tensor | None, original: Tensor | None, expected: Any) -> None:
        """Collect what the layer gets; quantize it, where that is all."""
        assert quantized is not None and original is not None
        try:
            if isinstance(self._moments, BatchNormMoments):
                self._moments.add(quantized, original, expected)
            else:
                self._moments.add(self.module, quantized, original)
            if self._at_once:
                self.finish()
        except Exception as error:
            raise _Failed(error) from error
        if not self.done:
            raise _Reached(self)

    def finish(self) -> None:
        """Quantize the layer from what was collected."""
        assert self._visitor is not None
        if not self._moments.finite:
            raise _NotFinite(self.name)
        layer = on_cpu(self.module)
        if isinstance(self._moments, BatchNormMoments):
            changed = dict(self._visitor.batch_norm(self.name, layer, self._moments))
        else:
            assert isinstance(layer.weight, Tensor)
            weight, bias = self._visitor.layer(self.name, layer, Feedback(self._moments, layer.weight))
            changed = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        for key, own in own_tensors(self.module).items():
            if key in changed:
                self._values[place_of(own)] = changed[key].reshape(own.shape).to(own, copy=True)
        self.done, self._moments = True, None


class _NotFinite(IlwpError):
    """NaN or infinity at a layer, whose name this holds."""


@torch.no_grad()
def calibrate(
    model: nn.Module, inputs: Any, visitor: Visitor, layers: Collection[str], memory_bytes: int = MEMORY_BYTES
) -> Calibrated:
    """Quantize a model layer by layer on calibration inputs.

    The model itself runs, on its own device and in eval mode, and is afterwards as it was; nobody else may run it
    meanwhile.

    Args:
        model: the model. Up to its last layer it has to treat the examples of a batch independently in eval mode.
        inputs: what the model is called with, see `calibration_inputs`.
        visitor: quantizes each layer.
        layers: names of the layers to quantize; all batch norms are visited.
        memory_bytes: of activations at one time, about.

    Returns:
        What was reached, and what it did to the outputs.

    Raises:
        CalibrationError: no inputs, the model does not run on them or mixes the examples of a batch, or NaN or infinity
            reaches a layer.
        TensorError: a layer or a batch norm holds NaN or infinity.
    """
    model = unwrap(model)
    examples = read_inputs(model, inputs)
    modules = dict(model.named_modules())
    visited = [n for n, module in modules.items() if (n in layers and is_layer(module)) or is_batch_norm(module)]
    for name in visited:
        _check_finite(name, modules[name])
    with borrowed(model):
        probed = probe(model, examples, visited)
        held = max(1, min(examples.size, memory_bytes // (4 * probed.example_bytes)))
        batches = [(start, start + held) for start in range(0, examples.size, held)]
        values: dict[Any, Tensor] = {}
        sites = {
            name: _Site(name, modules[name], probed.layouts[name], values, visitor, len(batches) == 1)
            for name in visited
            if name in probed.layouts
        }
        sharing = [
            _Site(n, modules[n], probed.layouts[n], values) for n in _sharing(modules, sites) if n in probed.layouts
        ]
        with _patched([*sites.values(), *sharing]):
            try:
                outputs = _passes(model, examples, batches, probed)
            except _NotFinite as error:
                reason = f": {probed.culprit} makes them of finite ones" if probed.culprit else ""
                if not all(bool(tensor.isfinite().all()) for tensor in floating(examples.batch)):
                    reason = ", which hold infinity themselves"
                raise CalibrationError(
                    f"NaN or infinity at {error.args[0]!r} on the calibration inputs{reason}"
                ) from None
    halves = [probed.outputs.layout.halves(output) for output in outputs]
    reached = {name for name, site in sites.items() if site.done}
    return Calibrated(reached, _relative_error(halves, probed.outputs.layout.dim))


def _passes(
    model: nn.Module, examples: CalibrationInputs, batches: list[tuple[int, int]], probed: Probed
) -> list[Tensor]:
    """Run every example twice in one batch until no layer waits; the outputs of the last batch."""
    device = device_of(model)
    while True:
        waiting: _Site | None = None
        outputs: list[Tensor] = []
        for start, stop in batches:
            try:
                outputs = probed.outputs.of(model, twice(examples.part(start, stop, device)))
            except _Reached as reached:
                site: _Site = reached.args[0]
                if waiting is not None and site is not waiting:
                    raise CalibrationError(
                        f"{type(model).__name__} runs its layers in an order that depends on the inputs: "
                        f"{waiting.name!r}, then {site.name!r}"
                    ) from None
                waiting = site
            except _Failed as failed:
                raise failed.args[0] from None
        if waiting is None:
            return outputs
        waiting.finish()


def _sharing(modules: Mapping[str, nn.Module], sites: Mapping[str, _Site]) -> list[str]:
    """The other modules that own a tensor of a site."""
    places = {place_of(tensor) for site in sites.values() for tensor in own_tensors(site.module).values()}
    return [
        name
        for name, module in modules.items()
        if name not in sites and any(place_of(tensor) in places for tensor in own_tensors(module).values())
    ]


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
        model: the model, see `calibrate`.
        inputs: likewise; some are taken, evenly spaced.
        weights: other weights, by name of the layer.
        progress: is told each layer, how many were before it, and how many there are.

    Returns:
        Squared errors relative to the variance of the outputs, by name of the layer.

    Raises:
        CalibrationError: the model does not run on the inputs, or gives nothing whose errors could be measured.
    """
    model = unwrap(model)
    examples, device = read_inputs(model, inputs), device_of(model)
    modules = dict(model.named_modules())
    owners: dict[Any, list[nn.Module]] = {}
    for module in modules.values():
        for tensor in own_tensors(module).values():
            owners.setdefault(place_of(tensor), []).append(module)
    means: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    with borrowed(model):
        probed = probe(model, examples, list(weights))
        enough = min(_EXAMPLES, max(_FEW_EXAMPLES, _EXAMPLES_BYTES // probed.example_bytes))
        every = max(1, examples.size // enough)
        batch = map_tensors(lambda tensor: tensor[::every][:enough].to(device), examples.batch)
        with ExitStack() as hooks:
            for name in weights:
                hooks.enter_context(_hook(modules[name], partial(_remember, means, name)))
            expected = probed.outputs.of(model, batch)
        if not expected:
            raise CalibrationError(
                f"{type(model).__name__} gives no floating-point tensor with a value for each example, whose errors "
                "could be measured"
            )
        for number, (name, weight) in enumerate(weights.items()):
            if progress is not None:
                progress(name, number, len(weights))
            module = modules[name]
            place = place_of(own_tensors(module)["weight"])
            with ExitStack() as held:
                for owner in owners[place]:
                    held.enter_context(holding(owner, {place: weight}))
                held.enter_context(_hook(module, partial(_shift, means, name)))
                found = probed.outputs.of(model, batch)
            errors[name] = _relative_error(zip(found, expected, strict=True), probed.outputs.layout.dim)
    return errors


@contextmanager
def _hook(module: nn.Module, change: Callable[[nn.Module, Tensor], Any]) -> Iterator[None]:
    """What a module gives is changed, or only looked at where nothing is returned."""
    hook = module.register_forward_hook(lambda own, _, output: change(own, output))
    try:
        yield
    finally:
        hook.remove()


def _remember(means: dict[str, Tensor], name: str, module: nn.Module, output: Tensor) -> None:
    means[name] = _mean(module, output)


def _shift(means: dict[str, Tensor], name: str, module: nn.Module, output: Tensor) -> Tensor:
    return output - _mean(module, output) + means[name]


def _mean(module: nn.Module, output: Tensor) -> Tensor:
    """Of each channel."""
    channels = output.dim() - 1 if isinstance(module, nn.Linear) else 1
    return output.mean([dim for dim in range(output.dim()) if dim != channels], keepdim=True)


def _relative_error(pairs: Iterable[tuple[Tensor, Tensor]], dim: int) -> float:
    """Squared error relative to the variance of what is expected, summed over pairs of what is found and expected."""
    return sum(float((a - b).square().sum() / _variance(b, dim)) for a, b in pairs)


def _variance(outputs: Tensor, dim: int) -> Tensor:
    """How much outputs differ along the dimension of the examples, as a sum of squares.

    What is the same for all examples (an offset of each output) says nothing, unless there is nothing else.
    """
    mean = outputs.mean(dim, keepdim=True) if outputs.shape[dim] > 1 else outputs.mean()
    variance, squares = (outputs - mean).square().sum(), outputs.square().sum()
    return torch.where(variance > ROUNDING * squares, variance, squares).clamp(min=1e-30)


ROUNDING = 1e-12
"""Of the outputs' squares; what float32 makes of equal outputs is less."""


def is_layer(module: nn.Module) -> bool:
    """Whether a module can be quantized with error feedback."""
    return isinstance(module, Layer)


def _check_finite(name: str, module: nn.Module) -> None:
    for key, tensor in own_tensors(module).items():
        if tensor.is_floating_point() and (bad := int((~tensor.isfinite()).sum())):
            raise TensorError(
                f"tensor '{name}.{key}': {bad} of its {tensor.numel()} values are NaN or infinite, so that nothing "
                "after it can be calibrated; mend the model"
            )


@contextmanager
def _patched(sites: Iterable[_Site]) -> Iterator[None]:
    """The sites run instead of the layers; where a forward was patched before, that one is put back."""
    sites = list(sites)
    before = [(site.module, vars(site.module).get("forward")) for site in sites]
    for site in sites:
        site.module.forward = site.forward
    try:
        yield
    finally:
        for module, own in before:
            del module.forward
            if own is not None:
                module.forward = own
