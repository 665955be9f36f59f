"""What a few examples tell of a model before it is calibrated: where each layer keeps the examples of a batch apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin.errors import CalibrationError, IlwpError
from ilwp_plugin.models.borrowing import own_tensors
from ilwp_plugin.models.chains import call
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, device_of, map_tensors

__all__ = ["Layout", "Outputs", "Probed", "first_tensor", "floating", "probe", "run", "twice"]

_FEW = 2
"""Examples; some models drop a dimension where there is only one."""


@dataclass(frozen=True)
class Layout:
    """Where a tensor keeps the examples of a batch: along one dimension, in order, once or several times.

    Attributes:
        dim: the dimension.
        times: how often the batch is repeated along it, as where a model puts windows or turned copies one behind the
            other.
    """

    dim: int = 0
    times: int = 1

    def halves(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the second half of the examples, in the same layout."""
        parts = torch.unflatten(tensor, self.dim, (self.times, 2, -1))
        first, second = (parts.select(self.dim + 1, half).flatten(self.dim, self.dim + 1) for half in (0, 1))
        return first, second

    def joined(self, first: Tensor, second: Tensor) -> Tensor:
        """The inverse of `halves`."""
        parts = [torch.unflatten(half, self.dim, (self.times, -1)) for half in (first, second)]
        return torch.stack(parts, self.dim + 1).flatten(self.dim, self.dim + 2)


@dataclass(frozen=True)
class Probed:
    """What a few examples tell of a model.

    Attributes:
        layouts: of the inputs of each layer that is called with a batch.
        example_bytes: of the largest output of a module, for one example.
        outputs: where to compare what the model computes.
        culprit: the first module that makes NaN or infinity of finite inputs, if any.
    """

    layouts: Mapping[str, Layout]
    example_bytes: int
    outputs: Outputs
    culprit: str | None


@dataclass(frozen=True)
class Outputs:
    """The floating-point tensors by which two runs of a model are compared.

    Those of its outputs that have a value for each example; where it has none, as a model that returns its loss, the
    output of the layer that runs last.

    Attributes:
        numbers: of them among all floating-point outputs.
        last: the layer that runs last, where it keeps the examples.
    """

    numbers: tuple[int, ...]
    last: tuple[nn.Module, Layout] | None

    def of(self, model: nn.Module, inputs: Any) -> list[Tensor]:
        """Run a model; the tensors."""
        kept: list[Any] = []
        with ExitStack() as stack:
            if not self.numbers and self.last is not None:
                hook = self.last[0].register_forward_hook(lambda module, _, output: kept.append(output))
                stack.callback(hook.remove)
            found = run(model, inputs)
        if self.numbers:
            tensors = floating(found)
            return [tensors[number] for number in self.numbers]
        return floating(kept[:1])

    @property
    def layout(self) -> Layout:
        """Of the tensors."""
        return Layout() if self.numbers or self.last is None else self.last[1]


def probe(model: nn.Module, examples: CalibrationInputs, names: Collection[str]) -> Probed:
    """Run a model on a few examples alone, and beside others.

    Args:
        model: in eval mode.
        examples: see `read_inputs`.
        names: of layers that have to keep examples apart.

    Raises:
        CalibrationError: the model does not run, or one of the layers gets from an example what depends on the others.
    """
    device, few = device_of(model), min(_FEW, examples.size)
    some, others = examples.part(0, few, device), examples.part(examples.size - few, examples.size, device)
    modules = {name: module for name, module in _hookable(model).items() if own_tensors(module)}
    alone: dict[str, Tensor] = {}
    together: dict[str, Tensor] = {}
    largest, culprit = 1, None

    def measure(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest, culprit
        for tensor in floating(output):
            largest = max(largest, tensor.numel() * tensor.element_size() // few)
            if culprit is None and not _finite([tensor]) and _finite(floating(inputs)):
                culprit = f"{name!r} ({type(module).__name__})"

    with _hooked(model, measure), _inputs_of(modules, alone):
        first = run(model, some)
    with _inputs_of(modules, together):
        second = run(model, map_tensors(lambda a, b: torch.cat([a, b]), some, others))
    layouts: dict[str, Layout] = {}
    called = list(alone)
    for position, (name, own) in enumerate(alone.items()):
        if (dim := _counting(own, together.get(name))) is None:
            continue
        if (layout := _layout(own, together[name], dim, few)) is not None:
            layouts[name] = layout
        elif name in names:
            again: dict[str, Tensor] = {}
            with _inputs_of(modules, again):
                run(model, some)
            raise _mixed(model, repr(name), own, again.get(name), _batch_statistics(modules, called[:position]))
    numbers = []
    for number, (a, b) in enumerate(zip(floating(first), floating(second), strict=False)):
        if _counting(a, b) == 0:
            if not _same(a, b[: len(a)]):
                repeated = floating(run(model, some))[number]
                raise _mixed(model, "its outputs", a, repeated, _batch_statistics(modules, called))
            numbers.append(number)
    ends = (modules[called[-1]], layouts[called[-1]]) if called and called[-1] in layouts else None
    return Probed(layouts, largest, Outputs(tuple(numbers), ends), culprit)


def run(model: nn.Module, inputs: Any) -> Any:
    """What a model computes. Raises CalibrationError where it does not run."""
    try:
        return call(model, inputs)
    except IlwpError:
        raise
    except Exception as error:  # the user's forward can fail in any way
        raise CalibrationError(
            f"{type(model).__name__} does not run on a batch of the calibration inputs ({type(error).__name__}: "
            f"{' '.join(str(error).split())}), though it ran on two examples; give inputs of which any number fits "
            "into a batch"
        ) from error


def twice(batch: Any) -> Any:
    """A batch with each example again in its second half."""
    return map_tensors(lambda tensor: torch.cat([tensor, tensor]), batch)


def first_tensor(arguments: Any) -> Tensor | None:
    """The first tensor among the arguments of a call."""
    return next(_leaves(arguments), None)


def floating(outputs: Any) -> list[Tensor]:
    """The floating-point tensors in what a model returns: in containers, dataclasses, or objects with attributes."""
    return [tensor for tensor in _leaves(outputs) if tensor.is_floating_point()]


def _leaves(tree: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
        return
    if depth > 8:  # an object that holds itself
        return
    inner: Any = ()
    if isinstance(tree, Mapping):
        inner = tree.values()
    elif isinstance(tree, (list, tuple)):
        inner = tree
    elif dataclasses.is_dataclass(tree) or type(tree).__module__ != "builtins":
        inner = getattr(tree, "__dict__", {}).values()
    for value in inner:
        yield from _leaves(value, depth + 1)


@contextmanager
def _inputs_of(modules: Mapping[str, nn.Module], found: dict[str, Tensor]) -> Iterator[None]:
    """Keep the first tensor of the first call of each module."""

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensor = first_tensor((args, kwargs))
            if tensor is not None:
                found.setdefault(name, tensor)

        return hook

    hooks = [m.register_forward_pre_hook(keep(name), with_kwargs=True) for name, m in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _hooked(model: nn.Module, tell: Callable[..., None]) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: tell(name, module, inputs, output)

    hooks = [module.register_forward_hook(hook(name)) for name, module in _hookable(model).items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _hookable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules inside a model that take hooks: those of a scripted one do not."""
    modules = model.named_modules()
    return {name: module for name, module in modules if name and not isinstance(module, torch.jit.ScriptModule)}


def _counting(own: Tensor, other: Tensor | None) -> int | None:
    """The dimension that counts the examples: the only one that doubled with them."""
    if other is None or own.dim() != other.dim():
        return None
    differing = [dim for dim in range(own.dim()) if own.shape[dim] != other.shape[dim]]
    if len(differing) != 1 or other.shape[differing[0]] != 2 * own.shape[differing[0]]:
        return None
    return differing[0]


def _layout(own: Tensor, other: Tensor, dim: int, few: int) -> Layout | None:
    """Where examples and others are in a tensor that holds the examples alone in `own`."""
    places = own.shape[dim] // few
    for times in range(1, places + 1):
        if own.shape[dim] % (times * few) == 0:
            layout = Layout(dim, times)
            if _same(own, layout.halves(other)[0]):
                return layout
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Up to what rounding does in batches of different sizes."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    exact = torch.finfo(a.dtype).bits >= 32
    x, y = a.float().nan_to_num(), b.float().nan_to_num()
    return float((x - y).abs().max() if x.numel() else 0) <= (1e-3 if exact else 3e-2) * float(x.abs().amax()) + 1e-6


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _batch_statistics(modules: Mapping[str, nn.Module], called: Iterable[str]) -> str | None:
    """The first of the layers that takes its statistics from the batch."""
    norms = (name for name in called if isinstance(modules[name], nn.modules.batchnorm._BatchNorm))
    return next((name for name in norms if modules[name].running_mean is None), None)


def _mixed(
    model: nn.Module, where: str, once: Tensor, again: Tensor | None, statistics: str | None
) -> CalibrationError:
    """What is wrong where the same examples give something else."""
    if again is None or once.shape != again.shape or not _same(once, again):
        return CalibrationError(
            f"{type(model).__name__} does not compute the same twice in eval mode, from the same examples, up to "
            f"{where}; switch off what is random"
        )
    why = f"{statistics!r} takes its statistics from the batch; " if statistics else ""
    return CalibrationError(
        f"{type(model).__name__} mixes the examples of a batch: up to {where} what comes from one example depends on "
        f"the others, so that it cannot be calibrated; {why}leave out `calibration`"
    )
