"""From torch-pruning's groups to the core's coupled channels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ilwp_plugin.errors import TensorError
from ilwp_plugin.models.chains import call, evaluating
from ilwp_plugin.pipeline.alignment import TensorAxis

__all__ = ["FAULTS", "Coupling"]

FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What torch-pruning raises where it does not see through a network, as through channel shuffles."""

_BatchNorm = nn.modules.batchnorm._BatchNorm


class Coupling:
    """Finds what is coupled to a depthwise layer's channels; a `Coupler` of the core.

    Args:
        model: the model.
        example_inputs: for the traces.
        importance: of torch-pruning's, by which the model is to be pruned later: then kernels are brought together with
            references that are about as important.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any, importance: Callable[..., Tensor | None] | None = None
    ) -> None:
        self._model, self._importance = model, importance
        with evaluating(model), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters outside modules
            self._graph = tp.DependencyGraph().build_dependency(
                model, example_inputs, forward_fn=lambda model, inputs: call(model, inputs), verbose=False
            )
        self._norms = _following_norms(model, example_inputs)

    def norm(self, layer: str) -> _BatchNorm | None:
        """The batch norm that reads a layer's output, if one does."""
        return self._norms.get(id(self._model.get_submodule(layer)))

    def importance(self, layer: str) -> Tensor | None:
        """The importance of a layer's channels; None without one, or where they cannot be grouped."""
        if self._importance is None:
            return None
        try:
            importance = self._importance(self._group(layer))
        except TensorError:  # which `axes` reports
            return None
        return None if importance is None else importance.detach()

    def axes(self, layer: str) -> tuple[TensorAxis, ...]:
        """The parameters and buffers that follow the channels of a layer.

        Raises:
            TensorError: the channels cannot be moved by permuting whole slices of parameters.
        """
        group = self._group(layer)
        channels = len(group[0].idxs)
        axes: dict[tuple[int, int], TensorAxis] = {}
        for item in group:
            for axis in self._axes(item, channels):
                known = axes.get((id(axis.tensor), axis.dim))
                if known is None:
                    axes[id(axis.tensor), axis.dim] = axis
                elif not torch.equal(known.positions, axis.positions):
                    raise TensorError("a parameter follows its channels in two different orders")
        return tuple(axes.values())

    def _group(self, layer: str) -> Any:
        """What follows all channels of a layer; raises TensorError."""
        module = self._model.get_submodule(layer)
        assert isinstance(module, nn.Conv2d)
        channels = module.out_channels
        if module.in_channels != channels:
            raise TensorError(f"it has {module.in_channels} inputs and {channels} outputs")
        prune = self._graph.get_pruner_of_module(module).prune_out_channels
        try:
            return self._graph.get_pruning_group(module, prune, idxs=list(range(channels)))
        except FAULTS as error:
            raise TensorError(f"torch-pruning cannot group its channels ({type(error).__name__}: {error})") from error

    def _axes(self, item: Any, channels: int) -> list[TensorAxis]:
        module, idxs = item.dep.target.module, list(item.idxs)
        inputs = not self._graph.is_out_channel_pruning_fn(item.dep.handler)
        tensors: list[tuple[Tensor | None, int]] = []
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups == module.in_channels == module.out_channels and module.groups > 1
            if module.groups > 1 and not depthwise:
                raise TensorError(f"a convolution in {module.groups} groups reads or makes its channels")
            tensors = [(module.weight, 1)] if inputs and not depthwise else [(module.weight, 0), (module.bias, 0)]
        elif isinstance(module, nn.ConvTranspose2d):
            if module.groups > 1:
                raise TensorError(f"a transposed convolution in {module.groups} groups reads or makes its channels")
            tensors = [(module.weight, 0)] if inputs else [(module.weight, 1), (module.bias, 0)]
        elif isinstance(module, nn.Linear):
            tensors = [(module.weight, 1)] if inputs else [(module.weight, 0), (module.bias, 0)]
        elif isinstance(module, _BatchNorm):
            vectors = (module.weight, module.bias, module.running_mean, module.running_var)
            tensors = [(vector, 0) for vector in vectors]
        elif isinstance(module, nn.PReLU):
            tensors = [(module.weight, 0)] if module.num_parameters > 1 else []
        elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            tensors = [(module.weight, 0), (module.bias, 0)]
        elif isinstance(module, nn.Parameter):  # outside modules that the graph knows, as layer scales are
            tensors = [(module, item.dep.target.pruning_dim % module.dim())]
        elif any(True for _ in module.parameters()):
            raise TensorError(f"a {type(module).__name__} reads or makes its channels")
        found = [(tensor, dim) for tensor, dim in tensors if tensor is not None]
        if not found:
            return []
        positions = _positions(idxs, list(item.root_idxs), channels)
        if any(int(positions.max()) >= tensor.shape[dim] for tensor, dim in found):
            raise TensorError(f"torch-pruning finds channels in a {type(module).__name__} that it does not have")
        return [TensorAxis(tensor, dim, positions) for tensor, dim in found]


def _positions(idxs: list[int], roots: list[int], channels: int) -> Tensor:
    """(channels, m): where each channel of the root layer lies."""
    places = torch.bincount(torch.tensor(roots), minlength=channels)
    if not bool((places == places[0]).all()):
        raise TensorError("a parameter follows only some of its channels")
    positions = torch.tensor(idxs)[torch.tensor(roots).argsort(stable=True)].view(channels, -1)
    if len(set(positions.flatten().tolist())) < positions.numel():
        raise TensorError("two of its channels share a place in a parameter")
    return positions


def _following_norms(model: nn.Module, example_inputs: Any) -> dict[int, _BatchNorm]:
    """The batch norm that reads a convolution's output first, by the convolution's id.

    That nothing else reads it is verified by the outputs on the probe.
    """
    made: dict[int, tuple[int, Tensor]] = {}
    norms: dict[int, _BatchNorm] = {}

    def after(module: nn.Module, _: Any, output: Tensor) -> None:
        made[id(output)] = (id(module), output)  # the tensor is kept, so that its id stays its own

    def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        source = made.get(id(arguments[0]))
        scalable = isinstance(module, _BatchNorm) and module.affine and module.running_var is not None
        if source is not None and scalable:
            norms.setdefault(source[0], module)  # type: ignore[arg-type]

    hooks: list[Any] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after))
        elif isinstance(module, _BatchNorm):
            hooks.append(module.register_forward_pre_hook(before))
    try:
        with evaluating(model), torch.no_grad():
            call(model, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return norms
