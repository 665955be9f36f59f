"""Files of what toolkits make: tensors as they are, integer codes beside chains, models wiped to be filled."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ilwp_plugin.compare.baselines import int8_weights
from ilwp_plugin.compare.methods import wiped
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.pipeline.compress import compress
from ilwp_plugin.pipeline.file import CompressedModel, untouched
from ilwp_plugin.pipeline.integers import with_integers

__all__ = ["as_is", "others_in_8_bits", "with_integers", "wiped"]


def as_is(state: Mapping[str, Tensor]) -> CompressedModel:
    """Tensors as a file holds them that changes none; sparse weights and packed integers take what they need."""
    return compress(state, IlwpConfig.lossless())


def others_in_8_bits(compressed: CompressedModel, model: nn.Module) -> CompressedModel:
    """The same, with the weights of convolutions and linear layers that it holds as they are in 8 bits a channel.

    Args:
        compressed: a model as its file holds it.
        model: the model, for its weights.
    """
    names = untouched(compressed)
    return with_integers(compressed, {name: v for name, v in int8_weights(model).items() if name in names})
