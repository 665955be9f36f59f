"""ilwp on the weights, then NNCF's post-training quantization of everything else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import nncf
import torch
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
from nncf.torch.function_hook.wrapper import is_wrapped
from torch import nn

from ilwp_plugin import CompressedModel, IlwpConfig, compress
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.pipeline.integers import with_integers

from ..saving import adopt, codes_of
from .hooks import take_quantizers_off, weight_quantizers
from .stripping import strip, with_sites

__all__ = ["stack"]

_WEIGHT_BITS = 8


def stack(
    model: nn.Module,
    calibration_dataset: nncf.Dataset,
    config: IlwpConfig | Mapping[str, Any] | None = None,
    *,
    calibration: Any = None,
    **options: Any,
) -> tuple[nn.Module, CompressedModel]:
    """Compress the weights with ilwp, and let `nncf.quantize` quantize the activations around them.

    NNCF puts every channel of a weight on a grid of its own. That would round a second time what ilwp has rounded, and
    codes of 8 bits make a large file. So the scale of each weight's quantizer is set to ilwp's step here, and NNCF's
    codes are ilwp's: the model runs in int8 with the codes that the file holds. Weights are therefore all on the grid,
    with codes of 8 bits at most, unless the configuration says otherwise; those that ilwp leaves get NNCF's own.
    Biases are those that ilwp's calibration leaves: NNCF's own correction of them would undo it, and is turned off.

    Args:
        model: a float model; it stays as it is.
        calibration_dataset: as `nncf.quantize` takes it, for the ranges of activations.
        config: an IlwpConfig or its fields; `compress` says what the default does.
        calibration: what ilwp calibrates with, see `compress`; the inputs of `calibration_dataset` if None.
        options: of `nncf.quantize`.

    Returns:
        The quantized model, as `nncf.strip` leaves it, and its file: `file.save(path)` writes it, and
        `ilwp_integrations.nncf.restore(path, Net())` makes the model again.

    Raises:
        ConfigError, CalibrationError: see `compress`.
        TrainingError: NNCF has wrapped the model already.
    """
    if is_wrapped(model):
        raise TrainingError("NNCF has wrapped this model already; give the float model, which is quantized here")
    chosen = IlwpConfig.of(config)
    given = chosen.model_fields_set
    if chosen.recipes is None:
        fields: dict[str, Any] = {}
        if not given & {"weight_bits"}:
            fields["weight_bits"] = _WEIGHT_BITS
        if not given & {"bits", "mode", "anchor", "residual_step", "preset", "scope", "layers"}:
            fields["bits"] = None  # chains lie on no common grid
        chosen = chosen.replace(**fields)
    batches = list(calibration_dataset.get_inference_data())
    if not batches:
        raise ConfigError("calibration_dataset: expected inputs, got none")
    file = compress(model, chosen, calibration=batches if calibration is None else calibration)
    small = copy.deepcopy(model)
    file.apply_to(small)
    parameters = options.pop("advanced_parameters", None) or AdvancedQuantizationParameters()
    parameters = dataclasses.replace(parameters, disable_bias_correction=True)
    quantized = nncf.quantize(small, calibration_dataset, advanced_parameters=parameters, **options)
    return _adopted(quantized, file, batches[0])


@torch.no_grad()
def _adopted(model: nn.Module, file: CompressedModel, example: Any) -> tuple[nn.Module, CompressedModel]:
    own = {*file.quantized, *(layer.info.name for section in file.chains for layer in section.layers)}
    quantized = weight_quantizers(model, example)
    sites = {key: take_quantizers_off(model, names) for key, names in quantized.items() if key in own}
    strip(model, example)
    left = with_sites(model, sites)
    file = adopt(left, with_integers(file, codes_of(left, ())))  # what ilwp leaves NNCF has quantized
    return model.eval(), file
