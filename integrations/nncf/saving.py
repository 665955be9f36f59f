"""From a trained and stripped model to the `.ilwp` file; the same for all versions of NNCF."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

from ilwp_plugin import CompressedModel, IlwpConfig, IntegerTensor, compress
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.models.chains import Chains
from ilwp_plugin.training import ClosedLoop, Session

__all__ = ["bake", "check_quantizes", "compressed", "explicit", "integer_weight", "is_baked", "put_on_grid"]

_BEFORE_BAKING = "_ilwp_weights_before_baking"
"""Attribute of a stripped model: the weights that its codes come from. Quantizing reconstructed weights once more would
give other codes, since the largest residual sets the step."""


def explicit(config: IlwpConfig, chains: Chains) -> IlwpConfig:
    """The configuration that finds just these chains, in a state dict too."""
    layers = tuple(layer for chain in chains for layer in chain.layers)
    return config.replace(layers=layers, target_scopes=(), ignored_scopes=())


@torch.no_grad()
def put_on_grid(stripped: nn.Module, quantizers: Iterable[tuple[str, FakeQuantize]]) -> None:
    """Set weights to exactly what their quantizers make of them, which is what the file restores; outputs stay.

    Args:
        stripped: a stripped model.
        quantizers: see `compressed`.
    """
    for name, quantizer in quantizers:
        weight = stripped.get_parameter(name)
        if _finite(weight, quantizer):
            weight.data = integer_weight(weight, quantizer).restore().to(weight.dtype)


def _finite(weight: Tensor, quantizer: FakeQuantize) -> bool:
    return bool(weight.isfinite().all() and quantizer.scale.isfinite().all())


def compressed(
    session: Session | None,
    fields: Mapping[str, Any],
    strip: Callable[[], nn.Module],
    quantizers: Callable[[nn.Module], Iterable[tuple[str, FakeQuantize]]],
) -> CompressedModel:
    """A controller's model as the file holds it.

    Args:
        session: that of the `ilwp` section, if the config has one.
        fields: of IlwpConfig, where the config has no `ilwp` section or one that quantizes nothing.
        strip: makes the stripped model, without hooks of ilwp.
        quantizers: those that NNCF has left on weights of a stripped model, by the weight's name in the state dict.

    Raises:
        ConfigError: fields are given, and the section has its own.
        TrainingError: the model was baked with another configuration, or the file would not restore it.
    """
    config = _file_config(session, fields)
    model = strip()
    return _to_file(model, config, quantizers(model), {"toolkit": "nncf"})


def _file_config(session: Session | None, fields: Mapping[str, Any]) -> IlwpConfig:
    if session is None:
        return IlwpConfig.from_dict(dict(fields))
    config = explicit(session.config, session.chains)
    if config.bits is None:
        return config.replace(**{"bits": IlwpConfig().bits, **fields})
    if fields:
        raise ConfigError(f"the section says how its layers are quantized; leave out {', '.join(fields)}")
    return config


def check_quantizes(session: Session | None) -> None:
    """Raises TrainingError for a model that will compute with quantized residuals, and does not yet."""
    if session is not None and session.loops and not session.quantizes:
        raise TrainingError(
            "the model does not compute with quantized residuals yet: params.quantization_start_epoch is "
            f"{session.schedule.quantization_start_epoch}, and this is epoch {session.epoch}"
        )


@torch.no_grad()
def bake(model: nn.Module, loops: Mapping[tuple[str, ...], ClosedLoop], config: IlwpConfig) -> None:
    """Put the reconstructed weights into a model in place of those that they come from.

    Args:
        model: a model whose hooks of ilwp are about to be removed.
        loops: by the layers of their chains; they find their weights in this model.
        config: one that finds the chains in its state dict, see `explicit`.
    """
    before = {
        f"{layer}.weight": source.weight().detach().clone()
        for layers, loop in loops.items()
        for layer, source in zip(layers, loop.sources, strict=True)
    }
    for layers, loop in loops.items():
        for layer, weight in zip(layers, loop.reconstructed(), strict=True):
            model.get_parameter(f"{layer}.weight").data = weight.clone()
    setattr(model, _BEFORE_BAKING, (before, config))


def is_baked(model: nn.Module) -> bool:
    """Whether `bake` has been there."""
    return hasattr(model, _BEFORE_BAKING)


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
    return IntegerTensor(codes.to(torch.int16), scale, points, quantizer.ch_axis)


def _to_file(
    stripped: nn.Module,
    config: IlwpConfig,
    quantizers: Iterable[tuple[str, FakeQuantize]],
    metadata: Mapping[str, Any],
) -> CompressedModel:
    state: dict[str, Tensor] = dict(stripped.state_dict())
    baked: tuple[dict[str, Tensor], IlwpConfig] | None = getattr(stripped, _BEFORE_BAKING, None)
    if baked is not None:
        weights, used = baked
        if config != used:
            raise TrainingError("the model has been trained with residuals quantized under another configuration")
        state.update(weights)
    # In the order of the chains, where there are any: each layer's codes are predicted by those before.
    place = {f"{layer}.weight": number for number, layer in enumerate(config.layers or ())}
    ordered = sorted(quantizers, key=lambda item: place.get(item[0], len(place)))
    for name, quantizer in ordered:
        if not _finite(stripped.get_parameter(name), quantizer):
            raise TrainingError(f"layer {name!r}: weights or scales are not finite; the training has diverged")
    quantized = {name: integer_weight(stripped.get_parameter(name), quantizer) for name, quantizer in ordered}
    state.update({name: codes.restore() for name, codes in quantized.items()})
    file = compress(state, config, quantized=quantized, metadata=metadata)
    if baked is not None:
        restored, computed = file.state_dict(), stripped.state_dict()
        for name in weights:
            if not torch.equal(restored[name], computed[name].cpu()):
                raise TrainingError(f"layer {name!r}: the file would not restore what the model computes with")
    return file
