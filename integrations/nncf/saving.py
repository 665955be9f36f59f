"""From a trained model to the `.ilwp` file, and the stripped model that it restores; the same for all NNCF versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

from ilwp_plugin import CompressedModel, IlwpConfig, IntegerTensor, compress
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.tensors import integers_of, restored
from ilwp_plugin.pipeline.file import untouched
from ilwp_plugin.training import Session

from .quantizers import Quantizer, added_state, described, quantizers_of

__all__ = [
    "LARGEST",
    "LARGEST_HALF",
    "Stripped",
    "adopt",
    "codes_of",
    "file_of",
    "finish",
    "integer_weight",
    "is_stripped",
    "metadata_of",
]

LARGEST, LARGEST_HALF = 127, 63
"""Codes of int8 weights; the half where NNCF keeps sums of products from overflowing on older CPUs."""
_FILE = "_ilwp_file"
"""Attribute of a stripped model: its file. To quantize what is quantized already would give another one."""


@dataclass(frozen=True, eq=False)
class Stripped:
    """A model whose hooks are gone, and whose quantizers are those of torch.

    Attributes:
        model: the model.
        network: the same as recipes see it, without NNCF's tensors.
        weights: the paths of the quantizers of weights, by key.
        more: what it takes to make the model again besides its quantizers, as JSON has it.
        sites: by key of a weight that ilwp quantizes, where NNCF would have quantized it to int8, and the largest code
            that is allowed there.
        put: puts a quantizer on such a site, and returns its path.
    """

    model: nn.Module
    network: Network
    weights: Mapping[str, str]
    more: Mapping[str, Any] = field(default_factory=dict)
    sites: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    put: Callable[[str, FakeQuantize], str] | None = None


@torch.no_grad()
def finish(stripped: Stripped, session: Session | None, expected: Mapping[str, Tensor]) -> nn.Module:
    """Leave exactly what the file restores in a model; its outputs stay, but for what the file rounds.

    Where NNCF would have quantized a weight to int8, and the codes of ilwp fit, a quantizer takes these codes over, so
    that an engine runs the layer in int8.

    Args:
        stripped: with the weights that have trained.
        session: that of the config's section, if it has one.
        expected: by key, what the model computed with.

    Returns:
        The model.

    Raises:
        TrainingError: weights are not finite, or the file would not restore what the model computed with.
    """
    model = stripped.model
    if session is None or not session.quantizes:
        for key, module in _modules(stripped, session).items():
            weight: Tensor = model.get_parameter(key)
            if bool(weight.isfinite().all() and module.scale.isfinite().all()):
                weight.data = restored(integer_weight(weight, module)).to(weight)
        return model
    codes = codes_of(stripped, session.parts.keys, session)
    state = {**stripped.network.state, **{key: restored(value) for key, value in codes.items()}}
    state = {key: value.to(stripped.network.state[key].dtype) for key, value in state.items()}
    file = session.parts.compressed(state, quantized=codes, metadata=metadata_of(stripped, codes))
    for key, weight in expected.items():
        if not torch.equal(file.tensor(key), weight.cpu()):
            raise TrainingError(f"layer {key!r}: the file would not restore what the model computes with")
    adopt(stripped, file, state)
    return model


@torch.no_grad()
def adopt(stripped: Stripped, file: CompressedModel, state: Mapping[str, Tensor] | None = None) -> CompressedModel:
    """Make a stripped model that of a file, with quantizers where the codes of its weights fit.

    Args:
        stripped: the model, changed in place.
        file: of its weights.
        state: what tensors are that the file holds as they are; those of the file if None.

    Returns:
        The file, which now knows the quantizers of the model.
    """
    model, weights = stripped.model, _in_int8(stripped, file)
    if weights or state is None:
        stripped = replace(stripped, weights={**stripped.weights, **weights})
        others = {key: tensor for key, tensor in (state or {}).items() if key in untouched(file)}
        file = file.with_others_of({**file.state_dict(), **others}, metadata_of(stripped, file.quantized))
    model.load_state_dict({**model.state_dict(), **file.state_dict(), **added_state(model, file)})
    setattr(model, _FILE, file)
    return file


def _in_int8(stripped: Stripped, file: CompressedModel) -> dict[str, str]:
    """Put quantizers on weights that are on one grid with codes of at most 8 bits; their paths, by key."""
    paths: dict[str, str] = {}
    for key, sites in stripped.sites.items():
        step, largest = _grid(file, key)
        for site, limit in sites.items():
            if stripped.put is not None and 0 < largest <= limit:
                scheme = {"dtype": "qint8", "scheme": "per_tensor_symmetric", "axis": 0}
                scale = np.asarray([step], np.float32)
                made = Quantizer("", key, -128, 127, **scheme, scale=scale, zero_point=(0,))  # type: ignore[arg-type]
                paths.setdefault(key, stripped.put(site, made.module(file)))
    return paths


def _grid(file: CompressedModel, key: str) -> tuple[float, int]:
    """The step of a weight whose values are all multiples of one, and the largest multiple; 0 and 0 of any other."""
    value = file.quantized.get(key)
    if value is not None:
        single = value.scale.size == 1 and value.zero_point is None
        return (float(value.scale), int(np.abs(value.codes.astype(np.int32)).max())) if single else (0.0, 0)
    layers = [layer for section in file.chains for layer in section.layers if layer.info.name == key]
    step = layers[0].quantized.step if layers and layers[0].quantized is not None else 0.0
    if not step > 0:
        return 0.0, 0
    multiples = file.tensor(key).double() / step
    codes = multiples.round()
    exact = bool((multiples - codes).abs().max() < 1e-4)  # sums of multiples, rounded to float32
    return (step, int(codes.abs().max())) if exact else (0.0, 0)


def file_of(
    stripped: Stripped, session: Session | None, fields: Mapping[str, Any], example_inputs: Any = None
) -> CompressedModel:
    """The file of a stripped model.

    Args:
        stripped: what `finish` has finished.
        session: that of the config's section, if it has one.
        fields: of IlwpConfig, where the config has no section of ours or one that quantizes nothing.
        example_inputs: see `compress`.

    Raises:
        ConfigError: fields are given, and the section has its own.
        TrainingError: weights are not finite.
    """
    if session is not None and session.changes and fields:
        raise ConfigError(f"the section says how its layers are quantized; leave out {', '.join(fields)}")
    file: CompressedModel | None = getattr(stripped.model, _FILE, None)
    if file is not None:
        return file.with_others_of(dict(stripped.network.state))
    codes = codes_of(stripped, stripped.network.state, session)
    return compress(
        stripped.network,
        _config(session, fields),
        quantized=codes,
        metadata=metadata_of(stripped, codes),
        example_inputs=example_inputs,
    )


def _config(session: Session | None, fields: Mapping[str, Any]) -> IlwpConfig:
    if session is None:
        return IlwpConfig.of(fields)
    if session.changes:
        return session.config
    return session.config.replace(**{"bits": IlwpConfig().bits, **fields})


def is_stripped(model: nn.Module) -> bool:
    """Whether `finish` has left what a file restores in a model."""
    return hasattr(model, _FILE)


def metadata_of(stripped: Stripped, codes: Mapping[str, IntegerTensor]) -> dict[str, Any]:
    """What a file says of where it comes from: enough to make the stripped model again; `codes` are in the file."""
    keys = {path: key for key, path in stripped.weights.items()}
    quantizers = [
        Quantizer.of(path, keys.get(path), module, keys.get(path) in codes)
        for path, module in quantizers_of(stripped.model)
    ]
    return {"toolkit": "nncf", **described(quantizers, **stripped.more)}


def _modules(stripped: Stripped, session: Session | None) -> dict[str, FakeQuantize]:
    """The quantizers of weights, by key: layers of chains in their order, then the others in that of the state dict.

    Each layer's codes are predicted by those before.
    """
    chained = [] if session is None else [key for chain in session.chains for key in chain.keys]
    found: dict[str, FakeQuantize] = {}
    for key in dict.fromkeys([*chained, *stripped.network.state]):
        if key in stripped.weights:
            module = stripped.model.get_submodule(stripped.weights[key])
            assert isinstance(module, FakeQuantize), "stripping has replaced NNCF's own"
            found[key] = module
    return found


def codes_of(stripped: Stripped, keys: Iterable[str], session: Session | None = None) -> dict[str, IntegerTensor]:
    """Codes of the quantizers of weights.

    Raises:
        TrainingError: these, or weights of other keys, are not finite.
    """
    modules, state = _modules(stripped, session), stripped.network.state
    for key in dict.fromkeys([*keys, *modules]):
        tensors = [state[key], *([modules[key].scale] if key in modules else [])]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point()):
            raise TrainingError(f"layer {key!r}: weights or scales are not finite; the training has diverged")
    return {key: integer_weight(state[key], module) for key, module in modules.items()}


@torch.no_grad()
def integer_weight(weight: Tensor, quantizer: FakeQuantize) -> IntegerTensor:
    """The codes of a weight that torch's FakeQuantize, as it stands in a stripped model, quantizes.

    The weight `(code - zero_point) * scale` is quantized to itself, so outputs stay the same bit for bit.
    """
    shape = [1] * weight.dim()
    if quantizer.scale.numel() > 1:
        shape[quantizer.ch_axis] = -1
    scale, zero = quantizer.scale.flatten(), quantizer.zero_point.flatten()
    codes = torch.round(quantizer(weight) / scale.reshape(shape)) + zero.reshape(shape)
    points = zero.to(torch.int16) if bool(zero.any()) else None
    return integers_of(codes.to(torch.int16), scale, points, quantizer.ch_axis)
