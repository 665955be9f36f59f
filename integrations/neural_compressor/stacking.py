"""ilwp on the weights, then an export, then INC's INT8 quantization of everything."""

from __future__ import annotations

import base64
import copy
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import numpy as np
import torch
from neural_compressor.common.base_config import BaseConfig
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import convert, prepare, quantize
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ilwp_plugin import CompressedModel, compress
from ilwp_plugin import IlwpConfig as CoreConfig
from ilwp_plugin.errors import ConfigError, FormatError, MissingDependencyError, TensorError, TrainingError, warn
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.models.tensors import array_of, integers_of, restored
from ilwp_plugin.pipeline.calibration_inputs import device_of

from .composition import EXPORTED
from .config import IlwpConfig
from .exported import activations, integer_weights, other_tensors, set_activations, set_weight
from .inputs import Examples, arguments_of, read_examples
from .portable import from_portable, portable
from .state import attached
from .versions import installed

__all__ = ["compress_exported", "is_exported", "restore_exported", "stack"]

_KEY = "ilwp_stack"
"""In the `meta` of a graph module, which its copies share."""

_SCALES, _ZEROS = "activation_scales", "activation_zero_points"
_MOST = 1 << 20
"""Bytes of activation scales and zero points in a file, so that one of a few bytes cannot ask for more."""

WEIGHT_BITS = 8
"""Codes of INC's weights are int8."""

_LARGEST = (1 << (WEIGHT_BITS - 1)) - 1

_BATCH = 512
"""Examples that a graph is calibrated with at once."""


@dataclass(frozen=True)
class Stacked:
    """How an exported model was made; enough to make one like it again.

    Attributes:
        config: of INC.
        dynamic_batch: whether the export leaves the size of a batch open.
        ilwp: the configuration of ilwp, or None.
        source: the float model, where every weight of the graph follows from ilwp's integers in it; else None.
    """

    config: BaseConfig
    dynamic_batch: bool
    ilwp: CoreConfig | None
    source: CompressedModel | None = None


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
    scale of INC's grid is set to that step (times the gain of the batch norm), and INC's codes are ilwp's. ilwp
    therefore puts every weight on its grid here, depthwise ones too, with steps for which no code passes 127; unless
    its configuration names `bits`, a mode or the like: the values of a chain lie on no common grid, so its layers get
    INC's. Either way the INT8 codes of depthwise layers are predicted by each other, without loss, where that saves
    bytes.

    Args:
        model: a float model; ilwp changes it in place.
        configs: `[IlwpConfig(...), INT8StaticQuantConfig(...)]` or with DynamicQuantConfig; the first may be left out.
        example_inputs: a tensor, a tuple of arguments, a dict of named ones, or batches of them, in a DataLoader for
            example; two examples or more. All of them calibrate ilwp (32 or more) and INC.
        run_fn: trains or calibrates the model under ilwp, see `quantize`.
        calibrate: is given the prepared graph and runs it on calibration data; the example inputs if None.
        dynamic_batch: leave the size of a batch open.

    Returns:
        The quantized graph module; `save` writes it and `load` restores it exactly.

    Raises:
        ConfigError: other configurations than these, or example inputs that are too few or none.
        MissingDependencyError: this INC's quantization does not work with the installed torch.
    """
    float_configs, config = _order(configs)
    examples = read_examples(model, example_inputs)
    if examples.batch is None:
        raise ConfigError("example_inputs: an export needs inputs; give two examples or more")
    ilwp: CoreConfig | None = None
    if float_configs:
        model = quantize(model, for_int8(float_configs[0]), run_fn=run_fn, example_inputs=examples)
        ilwp = attached(model).config
    elif run_fn is not None:
        run_fn(model)
    stacked = Stacked(config, dynamic_batch, ilwp)
    graph = _exported(model, examples, stacked, calibrate)
    for weight in integer_weights(graph).values():  # scales as float32, which a file holds, not as Python has them
        set_weight(graph, weight, weight.value)
    scales, zeros = activations(graph)
    set_activations(graph, _short(scales), zeros)
    compressed = attached(model).compressed if float_configs else None
    if compressed is not None:
        lost = _keep_grids(graph, model, compressed)
        if not lost:
            graph.meta[_KEY] = replace(stacked, source=compressed)
        elif not compressed.chains:
            reason, layers = next(iter(lost.items())), len(lost)
            warn(
                f"{layers} layers get INC's grid instead of ilwp's, {reason[0]!r} since {reason[1]}; the file is larger"
            )
    graph.recompile()
    return graph


def for_int8(config: IlwpConfig) -> IlwpConfig:
    """A configuration for what is to be computed with 8 bits: one grid for every weight, unless it asks for chains."""
    config = copy.deepcopy(config)
    if "weight_bits" in config.get_params_dict() and config.weight_bits is None:
        config.weight_bits = WEIGHT_BITS
    if config.preset in (None, "small") and not config.recipes and not config.asks_for_chains:
        config.bits = None
    return config


def _order(configs: Sequence[BaseConfig]) -> tuple[list[BaseConfig], BaseConfig]:
    names = [getattr(config, "name", type(config).__name__) for config in configs]
    if (
        not names
        or names[-1] not in EXPORTED
        or not (len(names) == 1 or (len(names) == 2 and isinstance(configs[0], IlwpConfig)))
    ):
        raise ConfigError(
            f"stack: expected [IlwpConfig(...), one of {', '.join(EXPORTED)}], or the latter alone, got {names}; "
            "algorithms for modules go together by compose(...)"
        )
    return list(configs[:-1]), configs[-1]


def _exported(
    model: nn.Module, examples: Examples, stacked: Stacked, calibrate: Callable[[nn.Module], Any] | None = None
) -> fx.GraphModule:
    """Export, prepare, calibrate, convert."""
    batches = _batches(model, examples, stacked.dynamic_batch)
    inputs, shapes = batches[0], None
    if stacked.dynamic_batch:
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} if isinstance(value, Tensor) else None for value in inputs)
    own = copy.deepcopy(unwrap(model)).eval()  # the export shares its parameters, which folding would change
    try:
        prepared = prepare(export(own, inputs, dynamic_shapes=shapes), copy.deepcopy(stacked.config))
    except ImportError as error:
        raise MissingDependencyError(
            f"the INT8 quantization of Neural Compressor {installed()} does not work with torch {torch.__version__}: "
            f"{error}; with this torch take 3.9 or later"
        ) from error
    with torch.no_grad():
        if calibrate is not None:
            calibrate(prepared)
        for batch_of_arguments in () if calibrate is not None else batches:
            prepared(*batch_of_arguments)
    graph: fx.GraphModule = convert(prepared)
    graph.meta[_KEY] = stacked
    methods: Any = graph
    methods.eval, methods.train = MethodType(_stay, graph), MethodType(_train, graph)
    return graph


def _batches(model: nn.Module, examples: Examples, dynamic: bool) -> list[tuple[Any, ...]]:
    """The arguments of calls that go through all examples; all batches of one size, if the size is to be fixed."""
    found = examples.calibration
    if found is None:
        batches = [arguments_of(model, examples.batch)]
    else:
        count = -(-found.size // _BATCH) if dynamic else 1
        ends = [found.size * number // count for number in range(count + 1)]
        device = device_of(model)
        batches = [arguments_of(model, found.part(ends[n], ends[n + 1], device)) for n in range(count)]
    if dynamic and any(isinstance(v, Tensor) and (v.dim() == 0 or len(v) < 2) for v in batches[0]):
        raise ConfigError(
            "example_inputs: an export with an open batch size needs two examples or more; "
            "dynamic_batch=False fixes the size"
        )
    return batches


def _stay(graph: fx.GraphModule) -> fx.GraphModule:
    """`eval()` of an exported graph, which knows no other mode; torch's own raises."""
    return graph


def _train(graph: fx.GraphModule, mode: bool = True) -> fx.GraphModule:
    if mode:
        raise TrainingError("an exported INT8 model cannot be trained; train before stack(...), with its run_fn")
    return graph


def _keep_grids(graph: fx.GraphModule, model: nn.Module, compressed: CompressedModel) -> dict[str, str]:
    """Where ilwp's weights are on a grid, let INC's codes be the same integers. Returns why others are not, by name."""
    lost = dict.fromkeys(integer_weights(graph), "it is not on a grid of ilwp")
    state = unwrap(model).state_dict()
    for name, weight in integer_weights(graph).items():
        own = compressed.quantized.get(name)
        if own is None or own.scale.ndim:
            continue
        if int(np.abs(own.centred).max()) > _LARGEST:
            lost[name] = f"its codes pass {_LARGEST}; weight_bits={WEIGHT_BITS} keeps them below"
            continue
        axis = weight.value.axis
        gain = _gains(graph.state_dict()[name], state[name], axis)
        if weight.value.scale.size == 1 and not bool((gain == gain[0]).all()):
            lost[name] = "there is one scale for the whole tensor, which cannot follow a batch norm; per_channel can"
            continue
        shape = [1] * own.codes.ndim
        shape[axis] = -1
        codes = torch.from_numpy(own.centred.astype(np.int64)) * gain.sign().long().reshape(shape)
        scale = float(own.scale) * torch.where(gain == 0, 1.0, gain.abs())  # of a dead channel any scale will do
        set_weight(graph, weight, integers_of(codes, scale if weight.value.scale.size > 1 else scale[0], None, axis))
        del lost[name]
    return lost


def _short(scales: Tensor) -> Tensor:
    """The next bfloat16 numbers above: 2 bytes instead of 8, and no activation is clipped that was not."""
    bits = scales.float().view(torch.int32)
    above: Tensor = ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32).double()
    return above


def _gains(folded: Tensor, weight: Tensor, axis: int) -> Tensor:
    """(channels,): what folding a batch norm multiplied each channel's weights by; 1 for channels of zeros."""
    flat = folded.movedim(axis, 0).flatten(1).double()
    before = weight.detach().movedim(axis, 0).flatten(1).double()
    largest = before.abs().argmax(dim=1, keepdim=True)
    top = before.gather(1, largest)
    gain = torch.where(top == 0, 1.0, flat.gather(1, largest) / torch.where(top == 0, 1.0, top))
    return gain.reshape(-1).float()


def is_exported(model: nn.Module) -> bool:
    """Whether `stack` made a model."""
    return isinstance(model, fx.GraphModule) and isinstance(model.meta.get(_KEY), Stacked)


def compress_exported(graph: fx.GraphModule) -> CompressedModel:
    """A graph that INC has quantized; nothing is rounded.

    It is stored as its integer codes and scales. Where all of those follow from the integers of ilwp, the float model
    that holds these is stored instead, if that is smaller, with a digest of the graph that `load` has to arrive at.

    Args:
        graph: as `stack` returned it.

    Raises:
        TensorError: a tensor cannot be stored, or the graph was not made by `stack`.
    """
    if not is_exported(graph):
        raise TensorError(f"this {type(graph).__name__} was not made by stack(...)")
    stacked: Stacked = graph.meta[_KEY]
    scales, zeros = activations(graph)
    if not torch.equal(scales.bfloat16().double(), scales):
        raise TensorError("the scale of an activation is no bfloat16 number, as stack(...) leaves them")
    about = {
        "version": installed(),
        "exported": {"algorithm": stacked.config.name, "config": portable(stacked.config)},
        "dynamic_batch": stacked.dynamic_batch,
        "ilwp": None if stacked.ilwp is None else stacked.ilwp.differences(),
    }
    codes = _compress_codes(graph, scales, zeros, about)
    if stacked.source is None:
        return codes
    packed = {"activations": _to_text(scales, zeros), "digest": _digest(graph)}
    metadata = {**stacked.source.metadata, "neural_compressor": {**about, **packed}}
    source = stacked.source.with_others_of(stacked.source.state_dict(), metadata)
    return min(codes, source, key=lambda file: file.ledger.file_bytes)


def _compress_codes(graph: fx.GraphModule, scales: Tensor, zeros: Tensor, about: Mapping[str, Any]) -> CompressedModel:
    weights = integer_weights(graph)
    state = {name: tensor.detach() for name, tensor in other_tensors(graph, weights).items()}
    state.update({name: restored(weight.value) for name, weight in weights.items()})
    if len(scales):
        state[_SCALES], state[_ZEROS] = scales.bfloat16(), zeros.to(torch.int16)
    values = {name: weight.value for name, weight in weights.items()}
    return compress(state, CoreConfig.lossless(), quantized=values, metadata={"neural_compressor": dict(about)})


def _to_text(scales: Tensor, zeros: Tensor) -> str:
    """Scales and zero points of activations: first all high bytes of the scales, which are much alike."""
    parts = (scales.bfloat16().view(torch.uint8).reshape(-1, 2).T.flip(0), zeros.to(torch.int16).view(torch.uint8))
    plain = b"".join(part.contiguous().numpy().tobytes() for part in parts)
    return base64.b85encode(zlib.compress(plain, 9)).decode()


def _from_text(text: Any, where: str) -> tuple[Tensor, Tensor]:
    """The inverse: float64 scales and int64 zero points."""
    try:
        decoder = zlib.decompressobj()
        plain = np.frombuffer(decoder.decompress(base64.b85decode(text), _MOST), dtype=np.uint8)
        if not decoder.eof or len(plain) % 4:
            raise ValueError(f"{len(plain)} bytes, and not an end")
    except (TypeError, ValueError, zlib.error) as error:
        raise FormatError(f"{where}: no scales and zero points of activations: {error}") from None
    high, low, zeros = np.split(plain, [len(plain) // 4, len(plain) // 2])
    bits = torch.from_numpy((high.astype(np.int32) << 24) | (low.astype(np.int32) << 16))
    return bits.view(torch.float32).double(), torch.from_numpy(zeros.view("<i2").astype(np.int64))


def _digest(graph: fx.GraphModule) -> str:
    """Of everything that the graph computes with."""
    weights = integer_weights(graph)
    arrays: list[NDArray[Any]] = [
        array for weight in weights.values() for array in (weight.value.codes.astype(np.int8), weight.value.scale)
    ]
    arrays += [array_of(tensor) for tensor in (*other_tensors(graph, weights).values(), *activations(graph))]
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return base64.b85encode(digest.digest()).decode()


def restore_exported(
    stored: CompressedModel, about: Mapping[str, Any], model: nn.Module, example_inputs: Any, where: str
) -> fx.GraphModule:
    """The inverse of `compress_exported`: export and quantize again, then set every weight, scale and zero point."""
    if example_inputs is None:
        raise ConfigError(f"{where} holds an exported model: pass example_inputs, with which it is exported again")
    exported = about.get("exported")
    if not isinstance(exported, dict) or exported.get("algorithm") not in EXPORTED:
        raise FormatError(f"{where}: no description of the exported model that this version understands")
    config = from_portable(exported["algorithm"], exported.get("config"), where)
    examples = read_examples(model, example_inputs)
    stacked = Stacked(config, bool(about.get("dynamic_batch")), None)
    ilwp = about.get("ilwp")
    if isinstance(ilwp, dict):
        stacked = Stacked(config, stacked.dynamic_batch, CoreConfig.from_dict(ilwp))
    if "digest" in about:
        return _restore_from_source(stored, about, model, examples, stacked, where)
    graph = _exported(model, examples, stacked)
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


def _restore_from_source(
    stored: CompressedModel,
    about: Mapping[str, Any],
    model: nn.Module,
    examples: Examples,
    stacked: Stacked,
    where: str,
) -> fx.GraphModule:
    """Go the way that `stack` went, from the stored float model."""
    own = copy.deepcopy(unwrap(model))
    stored.apply_to(own)
    graph = _exported(own, examples, stacked)
    for weight in integer_weights(graph).values():
        set_weight(graph, weight, weight.value)
    _keep_grids(graph, own, stored)
    set_activations(graph, *_from_text(about.get("activations"), where))
    if _digest(graph) != about["digest"]:
        raise TensorError(
            f"{where}: export and folding of batch norms give other numbers here than where it was saved (torch "
            f"{torch.__version__} here, Neural Compressor {about.get('version')} there); ilwp_plugin.load restores "
            "the float model exactly"
        )
    graph.meta[_KEY] = replace(stacked, source=stored)
    return graph
