"""How much of a model a file keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ilwp_plugin.models.network import is_weight
from ilwp_plugin.pipeline.file import CompressedModel

__all__ = ["weights_snr"]


def weights_snr(state: Mapping[str, Tensor], compressed: CompressedModel) -> float | None:
    """Signal-to-noise ratio of the weights in dB: their energy over that of their errors, all layers together.

    Args:
        state: the model's own tensors; of these the ones count that are weights in the sense of recipes.
        compressed: what became of them.

    Returns:
        The ratio; None where no weight has changed.
    """
    energy, error = 0.0, 0.0
    changed = {name for section in compressed.sections if not section.lossless for name in section.names}
    for name, tensor in state.items():
        if is_weight(tensor):
            own = tensor.detach().cpu().double()
            energy += float(own.square().sum())
            if name in changed:
                error += float((compressed.tensor(name).double() - own).square().sum())
    return 10 * math.log10(energy / error) if error > 0 and energy > 0 else None
