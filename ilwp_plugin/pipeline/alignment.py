"""Alignment of a whole model: what to do with which parameters, verified layer by layer.

Which parameters are coupled to a layer's channels is told by an integration (`ilwp_integrations.torch_pruning`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError, TensorError
from ilwp_plugin.method.alignment import ChannelAlignment, align_kernels
from ilwp_plugin.method.prediction import collocated_references
from ilwp_plugin.method.quantization import BITS, KernelPool
from ilwp_plugin.models.chains import Chain, call, evaluating
from ilwp_plugin.recipes.base import AUTO
from ilwp_plugin.recipes.ilwp import ClosedLoop, IlwpOptions, chains_of, finite_kernels

__all__ = ["AlignmentReport", "Coupler", "TensorAxis", "align_model"]

BatchNorm = nn.modules.batchnorm._BatchNorm

_TOLERANCE = 1e-9
"""Largest change of the outputs on the probe, relative to their largest magnitude, in float64."""


@dataclass(frozen=True, eq=False)
class TensorAxis:
    """A tensor that follows a layer's channels along one dimension.

    Attributes:
        tensor: parameter or buffer.
        dim: the dimension.
        positions: (channels, m) int64; where along it each channel of the layer lies. m > 1 where every channel owns
            several places, as after a flattening.
    """

    tensor: Tensor
    dim: int
    positions: Tensor


class Coupler(Protocol):
    """Tells what has to move when a layer's channels do; offered by an integration."""

    def axes(self, layer: str) -> Sequence[TensorAxis]:
        """All tensors that follow the layer's channels, its own among them.

        Raises:
            TensorError: with the reason, where its channels cannot be permuted.
        """
        ...

    def norm(self, layer: str) -> BatchNorm | None:
        """The batch norm that reads the layer's output; with one, signs and gains are free."""
        ...

    def importance(self, layer: str) -> Tensor | None:
        """(channels,) by which the network is to be pruned later; None where that plays no part."""
        ...


@dataclass(frozen=True)
class AlignmentReport:
    """What was done.

    Attributes:
        aligned: layers that were permuted, with the quotient of their mean |residual| after and before, both measured
            on kernels of equal mean magnitude.
        refused: reason by layer, for those that could not be permuted; signs and gains are set where they are free.
        change: change of the outputs on the probe, relative to their largest magnitude: rounding in float32.
    """

    aligned: Mapping[str, float]
    refused: Mapping[str, str]
    change: float


@torch.no_grad()
def align_model(
    model: nn.Module,
    example_inputs: Any,
    coupler: Callable[[nn.Module, Any], Coupler],
    config: IlwpConfig | None = None,
) -> AlignmentReport:
    """Align every chain of a model in place, layer by layer, to the layer before as the file will restore it.

    The work is done on a copy in float64, where a true symmetry leaves the outputs on the example inputs equal to 14
    digits: each layer is verified, and put back if it is none. The model gets the result.

    Args:
        model: the model, on the CPU.
        example_inputs: a tensor, or a tuple or dict of arguments: the probe.
        coupler: makes the coupler of a model and example inputs.
        config: chooses the layers and, by `bits`, how coarse the references are; IlwpConfig() if None.

    Returns:
        What was done and what was refused.

    Raises:
        ChainError: the model has no chain.
        ConfigError: a mode other than collocated and auto, or a scope other than depthwise.
        TensorError: the outputs on the probe are not finite, or a chain holds NaN or infinity.
    """
    options = IlwpConfig.of(config).ilwp()
    if options is None:
        raise ConfigError("recipes: alignment serves the recipe 'ilwp', which is not among them")
    if options.mode not in ("collocated", AUTO) or options.scope != "depthwise":
        raise ConfigError(
            "alignment is for mode 'collocated' or 'auto' and scope 'depthwise', got "
            f"{options.mode!r}, {options.scope!r}"
        )
    chains = chains_of(model, options, example_inputs=example_inputs)
    work = copy.deepcopy(model).double().eval().requires_grad_(True)  # the graph is traced by autograd
    inputs = tree_map(lambda leaf: leaf.double() if _is_real(leaf) else leaf, example_inputs)
    aligner = _Aligner(work, inputs, coupler(work, inputs), options)
    for chain in chains:
        aligner.align(chain)
    with evaluating(model):
        before = _outputs(model, example_inputs)
        own = model.state_dict()
        saved = {name: tensor.clone() for name, tensor in own.items()}
        try:
            for name, tensor in work.state_dict().items():
                own[name].copy_(tensor)
            change = _change(before, _outputs(model, example_inputs))
        except BaseException:  # Ctrl-C among them: half of it would be another function
            for name, tensor in saved.items():
                own[name].copy_(tensor)
            raise
    return AlignmentReport(aligner.aligned, aligner.refused, change)


class _Aligner:
    """Aligns the chains of one float64 model."""

    def __init__(self, model: nn.Module, inputs: Any, coupler: Coupler, options: IlwpOptions) -> None:
        self.aligned: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        self._model, self._inputs, self._coupler = model, inputs, coupler
        self._options = options.changed(bits=options.bits or BITS[-1], overrides={}, mode="collocated")
        self._probe = _outputs(model, inputs)
        self._moved: set[int] = set()  # weights of layers that are aligned: later layers must not move them again

    def align(self, chain: Chain) -> None:
        if len(chain.kernel_size) != 2:
            self.refused.update(dict.fromkeys(chain.layers, "alignment moves the channels of Conv2d layers only"))
            return
        restored: Tensor | None = None
        importance: Tensor | None = None  # of the layer before
        for name in chain.layers:
            layer = self._model.get_submodule(name)
            assert isinstance(layer, nn.Conv2d)
            kernels = finite_kernels(f"{name}.weight", layer.weight, chain.taps)
            norm = self._coupler.norm(name)
            own = self._coupler.importance(name)
            both = None if own is None or importance is None else (own, importance)
            alignment = align_kernels(kernels, restored, gains=norm is not None, importance=both)
            try:
                axes = self._coupler.axes(name)
                if any(id(axis.tensor) in self._moved for axis in axes):
                    raise TensorError("its channels are also those of a layer that is aligned already")
                self._try(layer, axes, norm, alignment)
                importance = None if own is None else own[alignment.order]
            except TensorError as error:
                self.refused[name] = str(error)
                importance = own
                if norm is not None:
                    scaling = align_kernels(kernels, restored, permute=False)
                    with contextlib.suppress(TensorError):  # the reason why is reported already
                        self._try(layer, (), norm, scaling)
            aligned = finite_kernels(f"{name}.weight", layer.weight, chain.taps)
            if name not in self.refused:
                self.aligned[name] = 1.0 if restored is None else _gain(kernels, aligned, restored)
            self._moved.add(id(layer.weight))
            restored = aligned if restored is None else self._restored(chain, aligned, restored)

    def _try(
        self, layer: nn.Conv2d, axes: Sequence[TensorAxis], norm: BatchNorm | None, alignment: ChannelAlignment
    ) -> None:
        """Move a layer's channels. Raises TensorError, with everything put back, if the outputs notice."""
        tensors = [axis.tensor for axis in axes] + list(layer.state_dict(keep_vars=True).values())
        if norm is not None:
            tensors += list(norm.state_dict(keep_vars=True).values())
        saved = [tensor.clone() for tensor in tensors]
        for axis in axes:
            index = torch.arange(axis.tensor.shape[axis.dim])
            index[axis.positions] = axis.positions[alignment.order]
            axis.tensor.copy_(axis.tensor.index_select(axis.dim, index))
        if norm is not None:
            _scale(layer, norm, alignment.gain.double())
        change = _change(self._probe, _outputs(self._model, self._inputs))
        if not change <= _TOLERANCE:
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
            raise TensorError(f"moving its channels changes the outputs by {change:.1e}")

    def _restored(self, chain: Chain, kernels: Tensor, previous: Tensor) -> Tensor:
        """A layer as the decoder will have it: the reference of the next one."""
        return ClosedLoop(self._options, chain).restored(1, kernels, KernelPool.of([previous], previous.shape[1]))[0]


def _scale(layer: nn.Conv2d, norm: BatchNorm, gain: Tensor) -> None:
    """`K' = g K`, undone by the batch norm: `mean' = g mean`, `var' = g^2 var`, and gamma' so that all cancels.

    With `gamma' = gamma sqrt(var' + eps) / (g sqrt(var + eps))` eps cancels too.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    layer.weight.mul_(gain.view(-1, 1, 1, 1))
    if layer.bias is not None:
        layer.bias.mul_(gain)
    var = norm.running_var.clone()
    norm.running_mean.mul_(gain)
    norm.running_var.mul_(gain.square())
    norm.weight.mul_(((norm.running_var + norm.eps) / (var + norm.eps)).sqrt() / gain)


def _gain(before: Tensor, after: Tensor, previous: Tensor) -> float:
    """Mean |residual| relative to the mean magnitude of the kernels, after by before."""
    slots = collocated_references(len(after), [len(previous)])
    scaled = before * (after.abs().mean() / before.abs().mean().clamp(min=1e-30))
    residuals = [(kernels - previous[slots]).abs().mean() for kernels in (after, scaled)]
    return float(residuals[0] / residuals[1].clamp(min=1e-30))


def _is_real(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _outputs(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    leaves = tree_leaves(call(model, example_inputs))
    outputs = [leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor)]
    if not outputs or not all(bool(t.isfinite().all()) for t in outputs):
        raise TensorError("the outputs on the example inputs are not finite, so that no change could be noticed")
    return outputs


def _change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest change relative to the largest magnitude, over all outputs."""
    return max(
        float((a - b).abs().max()) / max(float(b.abs().max()), 1e-30) for a, b in zip(after, before, strict=True)
    )
