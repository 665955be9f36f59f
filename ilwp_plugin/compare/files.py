"""Files of what toolkits make: tensors as they are, integer codes beside chains, models wiped to be filled."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ilwp_plugin.compare.baselines import int8_weights
from ilwp_plugin.compare.methods import wiped
from ilwp_plugin.compression import CompressedModel, compress
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.container import TensorInfo
from ilwp_plugin.method.grid import IntegerTensor
from ilwp_plugin.sections.lossless import split_lossless

__all__ = ["as_is", "others_in_8_bits", "with_integers", "wiped"]


def as_is(state: Mapping[str, Tensor]) -> CompressedModel:
    """Tensors as a file holds them that changes none; sparse weights and packed integers take what they need."""
    infos = [TensorInfo(name, tensor.dtype, tuple(tensor.shape), "raw") for name, tensor in state.items()]
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
    infos, raw, lossless = split_lossless(infos, copies)
    return CompressedModel(infos, [], raw, lossless=lossless)


def others_in_8_bits(compressed: CompressedModel, model: nn.Module) -> CompressedModel:
    """The same, with the weights of convolutions and linear layers that it holds as they are in 8 bits a channel.

    Args:
        compressed: a model as its file holds it.
        model: the model, for its weights.
    """
    untouched = {name for section in compressed.lossless for name in section.names}
    floats = {info.name for info in compressed.tensors if info.storage == "raw" or info.name in untouched}
    return with_integers(compressed, {name: v for name, v in int8_weights(model).items() if name in floats})


def with_integers(compressed: CompressedModel, values: Mapping[str, IntegerTensor]) -> CompressedModel:
    """The same chains, with other tensors as integer codes.

    Args:
        compressed: a model as its file holds it.
        values: by name of tensors that it stores as they are.
    """
    if not values:
        return compressed
    state = compressed.state_dict()
    state.update({name: value.restore().to(state[name].dtype) for name, value in values.items()})
    codes = {name: value for name in state for value in [{**compressed.quantized, **values}.get(name)] if value}
    coded = compress(state, IlwpConfig(bits=None), quantized=codes)
    kept = [compressed.batch_norms, *compressed.chains]
    keep = {name for section in kept if section is not None for name in section.names}
    infos = [old if old.name in keep else new for old, new in zip(compressed.tensors, coded.tensors, strict=True)]
    return CompressedModel(
        infos,
        compressed.chains,
        {info.name: state[info.name] for info in infos if info.storage == "raw"},
        compressed.metadata,
        grid=coded.grid,
        batch_norms=compressed.batch_norms,
        provenance=compressed.provenance,
        lossless=[left for section in coded.lossless if (left := section.without(keep)) is not None],
    )
