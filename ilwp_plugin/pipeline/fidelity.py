"""How much of a model a file keeps: of its weights, and of its outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ilwp_plugin.errors import CalibrationError
from ilwp_plugin.models.chains import call
from ilwp_plugin.models.network import Network, is_weight
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.pipeline.probing import floating

__all__ = ["OutputCosine", "weights_snr"]


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


_AT_A_TIME = 64
"""Examples that a model is called with."""


class OutputCosine:
    """What `evaluate` of `compress` may be where there are no labels: 100 times the cosine of outputs, at most 100.

    The cosine is that between an output for one example and what the model itself gives for it; its mean over examples
    and outputs counts. A drop of 4 is a mean cosine of .96.

    Args:
        network: the model.
        examples: inputs, best such as it is not calibrated with.

    Raises:
        CalibrationError: it gives no output of floating-point numbers for each example.
    """

    def __init__(self, network: Network, examples: CalibrationInputs) -> None:
        self._network, self._examples = network, examples
        self._expected = self._outputs(network.evaluated(None))
        if not self._expected:
            raise CalibrationError("the model gives no floating-point output with a value for each example")

    def __call__(self, evaluated: object) -> float:
        pairs = zip(self._outputs(evaluated), self._expected, strict=True)
        cosines = [torch.cosine_similarity(found, expected, dim=1).mean() for found, expected in pairs]
        return 100 * float(torch.stack(cosines).mean())

    @torch.no_grad()
    def _outputs(self, evaluated: object) -> list[Tensor]:
        """(examples, values) of each output, float64."""
        model, size = self._network.callable_of(evaluated), self._examples.size
        parts = []
        for start in range(0, size, _AT_A_TIME):
            stop = min(start + _AT_A_TIME, size)
            found = floating(call(model, self._examples.part(start, stop)))
            parts.append([out.cpu().double().flatten(1) for out in found if out.dim() and len(out) == stop - start])
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]
