"""From a trained model to the `.ilwp` file, and the stripped model that it restores; the same for all NNCF versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

from ilwp_plugin import CompressedModel, IlwpConfig, IntegerTensor, compress
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.tensors import integers_of, restored
from ilwp_plugin.training import Session

__all__ = ["file_of", "finish", "integer_weight", "is_stripped", "put_on_grid"]

_FILE = "_ilwp_file"
"""Attribute of a stripped model: its file. To quantize what is quantized already would give another one."""
_METADATA = {"toolkit": "nncf"}

Quantizers = Iterable[tuple[str, FakeQuantize]]
"""Those that NNCF has left on weights of a stripped model, by the weight's name in the state dict."""


@torch.no_grad()
def finish(
    model: nn.Module, session: Session | None, expected: Mapping[str, Tensor], quantizers: Quantizers
) -> nn.Module:
    """Leave exactly what the file restores in a model whose hooks are gone; its outputs stay.

    Args:
        model: stripped, with the weights that have trained.
        session: that of the config's section, if it has one.
        expected: by key, what the model computed with.
        quantizers: of the model.

    Returns:
        The model.

    Raises:
        TrainingError: weights are not finite, or the file would not restore what the model computed with.
    """
    quantizers = _in_order(quantizers, session)
    if session is None or not session.quantizes:
        put_on_grid(model, quantizers)
        return model
    state = dict(model.state_dict())
    codes = _codes(model, session.parts.keys, quantizers)
    state.update({name: restored(value).to(state[name].dtype) for name, value in codes.items()})
    file = session.parts.compressed(state, quantized=codes, metadata=_METADATA)
    for key, weight in expected.items():
        if not torch.equal(file.tensor(key), weight.cpu()):
            raise TrainingError(f"layer {key!r}: the file would not restore what the model computes with")
    file.apply_to(model)
    setattr(model, _FILE, file)
    return model


def file_of(
    stripped: nn.Module,
    network: Network,
    session: Session | None,
    fields: Mapping[str, Any],
    quantizers: Quantizers,
    example_inputs: Any = None,
) -> CompressedModel:
    """The file of a stripped model.

    Args:
        stripped: what `finish` has returned.
        network: the same, as recipes see it.
        session: that of the config's section, if it has one.
        fields: of IlwpConfig, where the config has no section of ours or one that quantizes nothing.
        quantizers: of the model.
        example_inputs: see `compress`.

    Raises:
        ConfigError: fields are given, and the section has its own.
        TrainingError: weights are not finite.
    """
    if session is not None and session.changes:
        if fields:
            raise ConfigError(f"the section says how its layers are quantized; leave out {', '.join(fields)}")
        file: CompressedModel | None = getattr(stripped, _FILE, None)
        if file is not None:
            return file.with_others_of(stripped)
    codes = _codes(stripped, network.state, _in_order(quantizers, session))
    config = _config(session, fields)
    return compress(network, config, quantized=codes, metadata=_METADATA, example_inputs=example_inputs)


def _config(session: Session | None, fields: Mapping[str, Any]) -> IlwpConfig:
    if session is None:
        return IlwpConfig.of(fields)
    if session.changes:
        return session.config
    return session.config.replace(**{"bits": IlwpConfig().bits, **fields})


def _in_order(quantizers: Quantizers, session: Session | None) -> list[tuple[str, FakeQuantize]]:
    """Layers of chains in their order, since each layer's codes are predicted by those before, and then the others."""
    keys = [] if session is None else [key for chain in session.chains for key in chain.keys]
    place = {key: number for number, key in enumerate(keys)}
    return sorted(quantizers, key=lambda item: place.get(item[0], len(place)))


def is_stripped(model: nn.Module) -> bool:
    """Whether `finish` has left what a file restores in a model."""
    return hasattr(model, _FILE)


def _codes(model: nn.Module, keys: Iterable[str], quantizers: Quantizers) -> dict[str, IntegerTensor]:
    """Codes of NNCF's quantizers. Raises TrainingError where these, or weights that have trained, are not finite."""
    quantizers = list(quantizers)
    parameters = dict(model.named_parameters())
    scales = {name: quantizer.scale for name, quantizer in quantizers}
    for name in {**dict.fromkeys(keys), **scales}:
        tensors = [tensor for tensor in (parameters.get(name), scales.get(name)) if tensor is not None]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise TrainingError(f"layer {name!r}: weights or scales are not finite; the training has diverged")
    return {name: integer_weight(parameters[name], quantizer) for name, quantizer in quantizers}


@torch.no_grad()
def put_on_grid(stripped: nn.Module, quantizers: Quantizers) -> None:
    """Set weights to exactly what their quantizers make of them, which is what the file restores; outputs stay."""
    for name, quantizer in quantizers:
        weight = stripped.get_parameter(name)
        if bool(weight.isfinite().all() and quantizer.scale.isfinite().all()):
            weight.data = restored(integer_weight(weight, quantizer)).to(weight)


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
