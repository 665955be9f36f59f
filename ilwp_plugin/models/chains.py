"""Which layers predict each other: convolutions in execution order, one chain for each kernel size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ilwp_plugin.errors import ChainError, nearest
from ilwp_plugin.models.surroundings import as_user

__all__ = [
    "Chain",
    "Chains",
    "Convolution",
    "Scope",
    "call",
    "evaluating",
    "find_chains",
    "find_chains_by_name",
    "is_real",
    "matcher",
    "scope_matches",
    "select_chains",
    "stored_weight",
    "unwrap",
]

Scope = Literal["depthwise", "conv"]
"""Which convolutions chains may have: depthwise ones, or all with kernels larger than 1x1."""


@dataclass(frozen=True)
class Chain:
    """Layers with one kernel size that predict each other, in execution order; the first one is the anchor.

    Attributes:
        kernel_size: one to three numbers, as the convolutions have dimensions; the last is the width.
        layers: module names.
    """

    kernel_size: tuple[int, ...]
    layers: tuple[str, ...]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The layers' weights in the state dict."""
        return tuple(f"{layer}.weight" for layer in self.layers)

    @property
    def taps(self) -> int:
        """Weights of one kernel."""
        return math.prod(self.kernel_size)

    @property
    def size(self) -> str:
        """The kernel size in words: "3x3", "3x3x3", or "length-5" of one dimension."""
        return _size(self.kernel_size)


@dataclass(frozen=True)
class Chains:
    """All chains of a model, and why each other convolution is in none.

    Attributes:
        chains: by kernel size, smallest first.
        excluded: reason by name of the convolution.
    """

    chains: tuple[Chain, ...]
    excluded: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Chain]:
        return iter(self.chains)

    def __len__(self) -> int:
        return len(self.chains)

    def check_predicted(self, names: Iterable[str]) -> None:
        """Raises ChainError unless each name is a layer that another one predicts (no anchor)."""
        predicted = [layer for chain in self.chains for layer in chain.layers[1:]]
        for name in names:
            if name.removesuffix(".weight") not in predicted:
                raise ChainError(f"references: {name!r} is no predicted layer; {nearest(name, predicted)}")


@dataclass(frozen=True)
class Convolution:
    """A candidate for a chain.

    Attributes:
        name: of the layer.
        shape: of its weight: (outputs, inputs a group, taps...).
        depthwise: whether each channel has a kernel of its own.
        refusal: why it can be in no chain, whatever the configuration; None where it can.
    """

    name: str
    shape: tuple[int, ...]
    depthwise: bool
    refusal: str | None = None


def find_chains(
    model: nn.Module,
    *,
    scope: Scope = "depthwise",
    target_scopes: Sequence[str] = (),
    ignored_scopes: Sequence[str] = (),
    layers: Sequence[str] | None = None,
    example_inputs: Any = None,
    taken: Mapping[str, str] | None = None,
    required: bool = True,
    others: Sequence[str] = (),
) -> Chains:
    """Find the chains of a model.

    The execution order comes from a forward pass where `example_inputs` are given, else from a symbolic trace; with
    `layers` no trace is needed. A module that is called several times stands where it is called first.

    Args:
        model: the model. Wrappers (DistributedDataParallel, torch.compile) are looked through.
        scope: "depthwise", or "conv" for every convolution with kernels larger than 1x1.
        target_scopes: names of layers or of modules that hold them; only these are taken. A name that begins with
            `{re}` is a regular expression that has to match the whole layer name.
        ignored_scopes: likewise; these are left out.
        layers: the layer names in the order in which they are to predict each other, instead of a trace.
        example_inputs: a tensor, or a tuple or dict of arguments, for one forward pass in eval mode.
        taken: layers that cannot be in a chain, by name, with the reason.
        required: whether a model without any chain is an error.
        others: names of other layers, which the scopes may name too.

    Raises:
        ChainError: the order cannot be traced, a name matches nothing, or no chain of two layers or more is found; the
            last lists every convolution with the reason why it was left out.
    """
    model = unwrap(model)
    names = {id(module): name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, _CONVOLUTIONS)}
    if layers is not None:
        order = _explicit(layers, convolutions)
    elif example_inputs is None and sum(_may_chain(module, scope) for module in convolutions.values()) < 2:
        order = list(convolutions)  # in no chain, so that the order does not matter
    else:
        executed = (
            _trace_by_running(model, example_inputs) if example_inputs is not None else _trace_symbolically(model)
        )
        order = [names[id(module)] for module in executed]
    unreached = "never executed"
    if layers is not None:
        unreached = "not named in `layers`"
    elif example_inputs is None:
        unreached = "not reached by the symbolic trace; example_inputs= traces by a forward pass"
    position = {name: i for i, name in enumerate(order)}
    owners: dict[int, str] = {}
    candidates = []
    for name in [*order, *(name for name in convolutions if name not in position)]:
        module = convolutions[name]
        refusal = None
        if isinstance(module, _TRANSPOSED):
            refusal = f"a {type(module).__name__}, which is transposed"
        elif isinstance(module.weight, nn.parameter.UninitializedParameter):
            refusal = "a lazy layer whose shape is not known yet"
        elif not is_real(module.weight):
            refusal = f"its weight is {module.weight.dtype}"
        elif name not in position:
            refusal = unreached
        elif id(stored_weight(module)) in owners:
            refusal = f"shares its weight with {owners[id(stored_weight(module))]!r}"
        elif name in (taken or {}):
            refusal = (taken or {})[name]
        if refusal is None:
            owners[id(stored_weight(module))] = name
        shape = () if refusal and refusal.startswith("a lazy") else tuple(module.weight.shape)
        candidates.append(Convolution(name, shape, _is_depthwise(module), refusal))
    return select_chains(candidates, scope, target_scopes, ignored_scopes, required, others)


def find_chains_by_name(
    state_dict: Mapping[str, Tensor],
    *,
    scope: Scope = "depthwise",
    target_scopes: Sequence[str] = (),
    ignored_scopes: Sequence[str] = (),
    layers: Sequence[str] | None = None,
    taken: Mapping[str, str] | None = None,
    required: bool = True,
    others: Sequence[str] = (),
) -> Chains:
    """Find the chains of a state dict, where no model is given: its order stands for the execution order.

    Every floating-point tensor of 3 to 5 dimensions called `<layer>.weight` counts as a convolution's, and one of shape
    (C, 1, ...) as depthwise. The first convolution is the exception where all dense ones are 1x1: then no other layer
    can be the stem, and it is that of a network for one-channel images (name it in `layers` to include it).

    Args:
        state_dict: tensors by name; a tensor of 3 to 5 dimensions has the shape (outputs, inputs a group, taps...).
        scope, target_scopes, ignored_scopes, required: as `find_chains` has them.
        layers: names in the order in which they run, instead of the order of the state dict.
        taken: why a layer is no candidate, by its name.
        others: names of layers that scopes may name although they are no convolutions.

    Raises:
        ChainError: as `find_chains` does.
    """
    found: dict[str, Tensor] = {
        key.removesuffix(".weight"): tensor
        for key, tensor in state_dict.items()
        if isinstance(key, str) and key.endswith(".weight") and _is_kernel(tensor)
    }
    order = list(found) if layers is None else _explicit(layers, found)
    dense = [tensor.shape[2:].numel() for tensor in found.values() if tensor.shape[1] != 1]
    stem_is_missing = len(dense) > 0 and max(dense) == 1
    owners: dict[tuple[Any, ...], str] = {}
    candidates: list[Convolution] = []
    named = dict.fromkeys(order)
    for name in {**named, **dict.fromkeys(found)}:
        tensor = found[name]
        place = (tensor.data_ptr(), tensor.storage_offset(), tensor.shape)
        refusal = None
        if name not in named:
            refusal = "not named in `layers`"
        elif tensor.numel() and place in owners:
            refusal = f"shares its weight with {owners[place]!r}"
        elif (
            layers is None
            and scope == "depthwise"
            and stem_is_missing
            and not candidates
            and tensor.shape[1] == 1
            and tensor.shape[2:].numel() > 1
        ):
            refusal = "the first convolution: its one input channel is the image's, so it is not depthwise"
        elif name in (taken or {}):
            refusal = (taken or {})[name]
        if refusal is None:
            owners[place] = name
        candidates.append(Convolution(name, tuple(tensor.shape), tensor.shape[1] == 1, refusal))
    return select_chains(candidates, scope, target_scopes, ignored_scopes, required, others)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            return model


def call(model: Callable[..., Any], example_inputs: Any) -> Any:
    """Call a model on a tensor, or on a tuple or dict of arguments."""
    with as_user():
        if isinstance(example_inputs, Mapping):
            return model(**example_inputs)
        return model(*example_inputs) if isinstance(example_inputs, (tuple, list)) else model(example_inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the `with` block, so that batch norm statistics and dropout do not notice a probe."""
    training = {module: module.training for module in model.modules()}
    with suppress(NotImplementedError):  # an exported program has one mode
        model.train(False)
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def stored_weight(module: nn.Module) -> Tensor | nn.Module:
    """The parameter behind a layer's weight: under a parametrization the original, since `.weight` is made anew.

    Of a parametrization with several originals (weight norm) the module itself stands for them.
    """
    if parametrize.is_parametrized(module, "weight"):
        original: Tensor | None = getattr(module.parametrizations.weight, "original", None)  # type: ignore[union-attr]
        return module if original is None else original
    return cast(Tensor, module.weight)


_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_TRANSPOSED = (nn.modules.conv._ConvTransposeNd,)


def _is_depthwise(module: nn.modules.conv._ConvNd) -> bool:
    return module.groups == module.in_channels and module.in_channels > 1


def _may_chain(module: nn.modules.conv._ConvNd, scope: Scope) -> bool:
    """Whether a convolution could be in a chain by its kind alone."""
    larger = not isinstance(module, _TRANSPOSED) and math.prod(module.kernel_size) > 1
    return larger and (scope == "conv" or _is_depthwise(module))


class _ConvolutionTracer(fx.Tracer):
    """A symbolic trace that stops at convolutions, also at user-defined subclasses of them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _CONVOLUTIONS) or super().is_leaf_module(m, module_qualified_name)


def _trace_symbolically(model: nn.Module) -> list[nn.Module]:
    try:
        with as_user():
            graph = _ConvolutionTracer().trace(model)
    except Exception as error:  # a symbolic trace runs the user's forward and can fail in any way
        raise ChainError(
            f"the execution order of {type(model).__name__} cannot be traced without inputs "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); "
            "pass example_inputs=, or name the layers in order in the configuration's `layers`"
        ) from error
    called = [model.get_submodule(cast(str, node.target)) for node in graph.nodes if node.op == "call_module"]
    return _first_calls(called)


def _trace_by_running(model: nn.Module, example_inputs: Any) -> list[nn.Module]:
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in model.modules()
        if isinstance(module, _CONVOLUTIONS)
    ]
    try:
        with evaluating(model), torch.no_grad():
            call(model, example_inputs)
    except Exception as error:  # the user's forward can fail in any way
        raise ChainError(
            f"{type(model).__name__} does not run on the example inputs: {type(error).__name__}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return _first_calls(called)


def _first_calls(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return list({id(module): module for module in modules if isinstance(module, _CONVOLUTIONS)}.values())


def is_real(tensor: Tensor) -> bool:
    """Of a dtype that the codec computes with; others (complex, float8) are kept as they are."""
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1


def _is_kernel(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and not is_lazy(tensor) and tensor.dim() in (3, 4, 5) and is_real(tensor)


def _explicit(layers: Sequence[str], found: Mapping[str, Any]) -> list[str]:
    layers = [name.removesuffix(".weight") for name in layers]
    for name in layers:
        if name not in found:
            raise ChainError(f"`layers` names {name!r}, which is no convolution; {nearest(name, found)}")
    if len(set(layers)) != len(layers):
        twice = sorted({name for name in layers if list(layers).count(name) > 1})
        raise ChainError(f"`layers` names {', '.join(map(repr, twice))} more than once")
    return list(layers)


def scope_matches(pattern: str, layer: str) -> bool:
    """Whether a scope (a layer, a module that holds it, or `{re}` and a regular expression) takes a layer."""
    if pattern.startswith("{re}"):
        return re.fullmatch(pattern.removeprefix("{re}"), layer) is not None
    module = pattern.removesuffix(".weight")
    return layer == module or layer.startswith(module + ".")


def matcher(
    patterns: Sequence[str], names: Sequence[str], option: str, *, strict: bool = True
) -> Callable[[str], bool]:
    """Whether a layer is named by some patterns.

    Args:
        patterns: as `target_scopes` of `find_chains`.
        names: those of all layers.
        option: what the patterns are called in an error.
        strict: each pattern has to match one of the names.

    Raises:
        ChainError: a pattern is no regular expression, or, if strict, matches nothing.
    """
    for pattern in patterns:
        try:
            used = any(scope_matches(pattern, name) for name in names)
        except re.error as error:
            raise ChainError(f"`{option}`: {pattern!r} is not a regular expression: {error}") from None
        if strict and not used:
            raise ChainError(f"`{option}`: {pattern!r} matches no convolution; {nearest(pattern, names)}")
    return lambda name: any(scope_matches(pattern, name) for pattern in patterns)


def select_chains(
    candidates: Sequence[Convolution],
    scope: Scope,
    target_scopes: Sequence[str],
    ignored_scopes: Sequence[str],
    required: bool,
    others: Sequence[str],
) -> Chains:
    """The chains of some convolutions: those of one kernel size, in the order in which they are given.

    Args:
        candidates: in the order in which they run.
        scope, target_scopes, ignored_scopes, required: as `find_chains` has them.
        others: names of layers that scopes may name although they are no convolutions.

    Raises:
        ChainError: a scope matches nothing; or there is no chain, and one is required.
    """
    names = [c.name for c in candidates]
    targeted = matcher(target_scopes, [*names, *others], "target_scopes")
    ignored = matcher(ignored_scopes, [*names, *others], "ignored_scopes")
    excluded: dict[str, str] = {}
    by_size: dict[tuple[int, ...], list[str]] = {}
    for c in candidates:
        if c.refusal is not None:
            excluded[c.name] = c.refusal
        elif ignored(c.name):
            excluded[c.name] = "named by `ignored_scopes`"
        elif target_scopes and not targeted(c.name):
            excluded[c.name] = "not named by `target_scopes`"
        elif math.prod(c.shape[2:]) == 1:
            excluded[c.name] = f"{_size(c.shape[2:])} kernels"
        elif scope == "depthwise" and not c.depthwise:
            excluded[c.name] = "not depthwise, and the scope is 'depthwise'"
        elif 0 in c.shape:
            excluded[c.name] = "holds no weights"
        else:
            by_size.setdefault(tuple(c.shape[2:]), []).append(c.name)
    chains = []
    for size, members in sorted(by_size.items(), key=lambda item: (len(item[0]), item[0])):
        if len(members) > 1:
            chains.append(Chain(size, tuple(members)))
        else:
            excluded[members[0]] = f"the only layer with {_size(size)} kernels: nothing could predict it"
    if not chains and required:
        raise ChainError(_no_chain(excluded, scope))
    return Chains(tuple(chains), excluded)


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size)) if len(size) > 1 else f"length-{size[0]}"


def _no_chain(excluded: Mapping[str, str], scope: Scope) -> str:
    if not excluded:
        return "no chain: the model holds no convolution (those inside a scripted or traced module are not seen)"
    reasons = "; ".join(f"{name or '(the model itself)'}: {reason}" for name, reason in excluded.items())
    larger = any(reason.startswith("not depthwise") for reason in excluded.values())
    mend = "; scope='conv' takes every kernel larger than 1x1" if larger else ""
    return f"no chain of two layers or more among {len(excluded)} convolutions ({reasons}){mend}"
