"""ilwp on the weights, then an export, then INC's INT8 quantization of everything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from neural_compressor.common.base_config import BaseConfig, config_registry
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import convert, prepare, quantize
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from torch import Tensor, fx, nn

from ilwp_plugin import CompressedModel, compress
from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin.errors import ConfigError, FormatError, TensorError
from ilwp_plugin.method.chains import call, unwrap
from ilwp_plugin.method.grid import IntegerTensor

from .algorithm import attached
from .composition import EXPORTED
from .config import ALGORITHM
from .exported import activations, integer_weights, other_tensors, set_activations, set_weight

__all__ = ["compress_exported", "is_exported", "restore_exported", "stack"]

_ATTRIBUTE = "ilwp_stack"
_SCALES, _ZEROS = "activation_scales", "activation_zero_points"
_LARGEST = 127
"""Codes of INC's weights are int8."""


@dataclass(frozen=True)
class Stacked:
    """How an exported model was made; enough to make one like it again.

    Attributes:
        config: of INC.
        dynamic_batch: whether the export leaves the size of a batch open.
        ilwp: the configuration of ilwp, or None.
    """

    config: BaseConfig
    dynamic_batch: bool
    ilwp: CoreConfig | None


def stack(
    model: nn.Module,
    configs: Sequence[BaseConfig],
    example_inputs: Any,
    *,
    run_fn: Callable[[nn.Module], Any] | None = None,
    calibrate: Callable[[nn.Module], Any] | None = None,
    dynamic_batch: bool = True,
) -> fx.GraphModule:
    """Run ilwp, export, and run INC's static or dynamic INT8 quantization on what is exported.

    INC folds batch norms into the weights and puts each channel on a grid of its own, the largest magnitude being 127.
    That would round a second time what ilwp has rounded. So wherever ilwp's weights are whole multiples of a step, the
    scale of INC's grid is set to that step (times the gain of the batch norm), and INC's codes are ilwp's: this holds
    for the layers of `weight_step`. The values of a chain (`bits`) lie on no common grid, so its layers get INC's; with
    `bits=None` depthwise layers are on the grid of `weight_step`, too. Either way their INT8 codes are predicted by each
    other, without loss, where that saves bytes.

    Args:
        model: a float model; ilwp changes it in place.
        configs: `[IlwpConfig(...), INT8StaticQuantConfig(...)]` or with DynamicQuantConfig; the first may be left out.
        example_inputs: a tensor, or a tuple of arguments; a batch of two examples or more.
        run_fn: trains the model under ilwp, see `quantize`.
        calibrate: is given the prepared graph and runs it on calibration data; the example inputs if None.
        dynamic_batch: leave the size of a batch open.

    Returns:
        The quantized graph module; `save` writes it and `load` restores it exactly.

    Raises:
        ConfigError: other configurations than these, or example inputs that are too few.
    """
    float_configs, config = _order(configs)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    ilwp: CoreConfig | None = None
    if float_configs:
        model = quantize(model, float_configs[0], run_fn=run_fn, example_inputs=example_inputs)
        ilwp = attached(model).config
    elif run_fn is not None:
        run_fn(model)
    stacked = Stacked(config, dynamic_batch, ilwp)
    graph = _exported(model, inputs, stacked, calibrate or (lambda graph: call(graph, inputs)))
    for weight in integer_weights(graph).values():  # scales as float32, which a file holds, not as Python has them
        set_weight(graph, weight, weight.value)
    if ilwp is not None:
        _keep_grids(graph, model, attached(model).compressed)
    graph.recompile()
    return graph


def _order(configs: Sequence[BaseConfig]) -> tuple[list[BaseConfig], BaseConfig]:
    names = [getattr(config, "name", type(config).__name__) for config in configs]
    if not names or names[-1] not in EXPORTED or names[:-1] not in ([], [ALGORITHM]):
        raise ConfigError(
            f"stack: expected [IlwpConfig(...), one of {', '.join(EXPORTED)}], or the latter alone, got {names}; "
            "algorithms for modules go together by compose(...)"
        )
    return list(configs[:-1]), configs[-1]


def _exported(
    model: nn.Module, inputs: tuple[Any, ...], stacked: Stacked, calibrate: Callable[[nn.Module], Any]
) -> fx.GraphModule:
    """Export, prepare, calibrate, convert."""
    shapes = None
    if stacked.dynamic_batch:
        if any(isinstance(value, Tensor) and (value.dim() == 0 or len(value) < 2) for value in inputs):
            raise ConfigError(
                "example_inputs: an export with an open batch size needs two examples or more; "
                "dynamic_batch=False fixes the size"
            )
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} if isinstance(value, Tensor) else None for value in inputs)
    own = copy.deepcopy(unwrap(model)).eval()  # the export shares its parameters, which folding would change
    graph = prepare(export(own, inputs, dynamic_shapes=shapes), copy.deepcopy(stacked.config))
    with torch.no_grad():
        calibrate(graph)
    graph = convert(graph)
    setattr(graph, _ATTRIBUTE, stacked)
    return graph


def _keep_grids(graph: fx.GraphModule, model: nn.Module, compressed: CompressedModel | None) -> None:
    """Where ilwp's weights are on a grid, let INC's codes be the same integers."""
    grid = None if compressed is None else compressed.grid
    if grid is None:
        return
    weights = integer_weights(graph)
    state = unwrap(model).state_dict()
    for info, own in zip(grid.infos, grid.values, strict=True):
        weight = weights.get(info.name)
        if weight is None or int(own.centred.abs().max()) > _LARGEST or own.scale.dim():
            continue
        folded = graph.get_parameter(weight.name).detach()
        gain = _gains(folded, state[info.name])
        codes = own.centred * gain.sign().long().reshape(-1, *[1] * (folded.dim() - 1))
        if weight.value.scale.numel() == 1 and not bool((gain == gain[0]).all()):
            continue  # one scale for the whole tensor, and channels of different gains
        scale = (own.scale * gain.abs()).reshape(-1)
        set_weight(graph, weight, IntegerTensor(codes, scale if weight.value.scale.numel() > 1 else scale[0]))


def _gains(folded: Tensor, weight: Tensor) -> Tensor:
    """(channels,): what folding a batch norm multiplied each channel's weights by; 1 for channels of zeros."""
    flat, before = folded.flatten(1).double(), weight.detach().flatten(1).double()
    largest = before.abs().argmax(dim=1, keepdim=True)
    top = before.gather(1, largest)
    gain = torch.where(top == 0, 1.0, flat.gather(1, largest) / torch.where(top == 0, 1.0, top))
    return gain.reshape(-1).float()


def is_exported(model: nn.Module) -> bool:
    """Whether `stack` made a model."""
    return isinstance(getattr(model, _ATTRIBUTE, None), Stacked)


def compress_exported(graph: fx.GraphModule) -> CompressedModel:
    """A graph that INC has quantized, its weights as integer codes and scales; nothing is rounded.

    Raises:
        TensorError: a tensor cannot be stored.
    """
    stacked: Stacked = getattr(graph, _ATTRIBUTE)
    weights = integer_weights(graph)
    state = {name: tensor.detach() for name, tensor in other_tensors(graph, weights).items()}
    state.update({name: weight.value.restore() for name, weight in weights.items()})
    scales, zeros = activations(graph)
    if len(scales):
        if not torch.equal(scales.float().double(), scales):
            raise TensorError("the scale of an activation is no float32 number")
        state[_SCALES], state[_ZEROS] = scales.float(), zeros.to(torch.int32)
    about = {
        "version": version("neural-compressor-pt"),
        "exported": {"algorithm": stacked.config.name, "config": _portable(stacked.config)},
        "dynamic_batch": stacked.dynamic_batch,
        "ilwp": None if stacked.ilwp is None else stacked.ilwp.to_dict(),
    }
    values = {name: weight.value for name, weight in weights.items()}
    return compress(state, CoreConfig(bits=None), quantized=values, metadata={"neural_compressor": about})


def restore_exported(
    stored: CompressedModel, about: Mapping[str, Any], model: nn.Module, example_inputs: Any, where: str
) -> fx.GraphModule:
    """The inverse of `compress_exported`: export and quantize again, then set every weight, scale and zero point."""
    if example_inputs is None:
        raise ConfigError(f"{where} holds an exported model: pass example_inputs, with which it is exported again")
    exported = about.get("exported")
    if not isinstance(exported, dict) or exported.get("algorithm") not in EXPORTED:
        raise FormatError(f"{where}: no description of the exported model that this version understands")
    config = _from_portable(exported["algorithm"], exported.get("config"), where)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    stacked = Stacked(config, bool(about.get("dynamic_batch")), None)
    ilwp = about.get("ilwp")
    if isinstance(ilwp, dict):
        stacked = Stacked(config, stacked.dynamic_batch, CoreConfig.from_dict(ilwp))
    graph = _exported(model, inputs, stacked, lambda graph: call(graph, inputs))
    weights, values = integer_weights(graph), stored.quantized
    state = stored.state_dict()
    others = other_tensors(graph, weights)
    expected = {*weights, *others, *((_SCALES, _ZEROS) if _SCALES in state else ())}
    if set(weights) != set(values) or expected != set(state):
        different = sorted({*expected} ^ {*state} or {*weights} ^ {*values})
        raise TensorError(f"{where} does not fit {type(model).__name__}: {different[:3]} are in one of the two only")
    for name, weight in weights.items():
        set_weight(graph, weight, values[name])
    with torch.no_grad():
        for name, tensor in others.items():
            if tensor.shape != state[name].shape:
                raise TensorError(f"{where}: tensor {name!r} has another shape in {type(model).__name__}")
            tensor.copy_(state[name])
    empty = torch.empty(0)
    set_activations(graph, state.get(_SCALES, empty).double(), state.get(_ZEROS, empty).long())
    return graph


def _portable(config: BaseConfig) -> dict[str, Any]:
    """A configuration of INC with all that it says; INC's own `to_dict` loses what is global beside local ones."""
    fields = {name: getattr(config, name) for name in config.params_list if name not in ("white_list", "model_info")}
    local = {
        key if isinstance(key, str) else "{type}" + key.__name__: _portable(value)
        for key, value in config.local_config.items()
    }
    return {"fields": fields, "local": local}


def _from_portable(name: str, values: Any, where: str) -> BaseConfig:
    if not isinstance(values, dict) or not isinstance(values.get("fields"), dict):
        raise FormatError(f"{where}: no configuration of {name!r}")
    config = config_registry.get_cls_configs()[FRAMEWORK_NAME][name](**values["fields"])
    for key, local in values.get("local", {}).items():
        operator: Any = key
        if key.startswith("{type}"):
            operator = getattr(nn, key.removeprefix("{type}"), None)
            if not (isinstance(operator, type) and issubclass(operator, nn.Module)):
                raise FormatError(f"{where}: a configuration of {key!r}, which is no module of torch.nn")
        config.set_local(operator, _from_portable(name, local, where))
    return config
