"""What NNCF 3 can do of NNCF 2's JSON config, as models: types and ranges, errors and the schema follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from ilwp_plugin.errors import ConfigError, nearest
from ilwp_plugin.validation import config_error

from ..config import algorithm_sections, algorithms

__all__ = ["SECTIONS", "InputInfo", "Whole", "check"]


def _whole_number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(strict=True, ge=0), BeforeValidator(_whole_number)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Scopes = str | list[str]
Axis = Annotated[int, Field(strict=True, ge=1), BeforeValidator(_whole_number)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BatchNormAdaptation(_Strict):
    num_bn_adaptation_samples: Count = 0


class Initializer(_Strict):
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()


class Range(_Strict):
    num_init_samples: Count = 256
    type: Literal["min_max", "mean_min_max", "mixed_min_max", "mean_percentile"] | None = None


class QuantizationInitializer(Initializer):
    range: Range = Range()


class Activations(_Strict):
    mode: Literal["symmetric", "asymmetric"] | None = None
    bits: Count = Field(default=8, json_schema_extra={"const": 8})
    per_channel: Flag | None = None

    @field_validator("bits")
    @classmethod
    def _eight(cls, value: int) -> int:
        if value != 8:
            raise ValueError(f"quantization of {value} bits cannot be mapped to NNCF 3, which has 8")
        return value


class Weights(Activations):
    ignored_scopes: Scopes = ()  # type: ignore[assignment]


class _Algorithm(_Strict):
    algorithm: str
    ignored_scopes: Scopes = ()  # type: ignore[assignment]
    target_scopes: Scopes = ()  # type: ignore[assignment]
    validate_scopes: Flag = True


class Quantization(_Algorithm):
    algorithm: Literal["quantization"]
    preset: Literal["performance", "mixed"] = "performance"
    initializer: QuantizationInitializer = QuantizationInitializer()
    weights: Weights = Weights()
    activations: Activations = Activations()
    overflow_fix: Literal["enable", "disable", "first_layer_only"] = "enable"
    quantize_inputs: Literal[True] = True
    quantize_outputs: Literal[False] = False


class SparsityParams(_Strict):
    schedule: Literal["polynomial", "exponential", "multistep"] | None = None
    sparsity_target: Share = 0.5
    sparsity_target_epoch: Count = 90
    sparsity_freeze_epoch: Count = 100
    multistep_steps: list[Count] = [90]
    multistep_sparsity_levels: list[Share] = [0.1, 0.5]
    sparsity_level_setting_mode: Literal["global"] = "global"
    power: Number = 0.9
    concave: Flag = True

    @model_validator(mode="after")
    def _one_more(self) -> SparsityParams:
        steps, levels = len(self.multistep_steps), len(self.multistep_sparsity_levels)
        if self.schedule == "multistep" and levels != steps + 1:
            raise ValueError(f"{steps} multistep_steps need one more multistep_sparsity_levels, got {levels}")
        return self


class MagnitudeParams(SparsityParams):
    weight_importance: Literal["normed_abs"] = "normed_abs"


class RBParams(SparsityParams):
    schedule: Literal["polynomial", "exponential", "multistep", "adaptive"] | None = None  # type: ignore[assignment]
    step: Number = 0.05
    eps: Number = 0.03
    patience: Count = 1


class MagnitudeSparsity(_Algorithm):
    algorithm: Literal["magnitude_sparsity"]
    sparsity_init: Share = 0.0
    params: MagnitudeParams = MagnitudeParams()
    initializer: Initializer = Initializer()


class RBSparsity(_Algorithm):
    algorithm: Literal["rb_sparsity"]
    sparsity_init: Share = 0.0
    params: RBParams = RBParams()
    compression_lr_multiplier: Number | None = None


class ConstSparsity(_Algorithm):
    algorithm: Literal["const_sparsity"]


class FilterParams(_Strict):
    schedule: Literal["exponential", "exponential_with_bias", "baseline"] = "exponential"
    pruning_target: Share = 0.5
    pruning_steps: Count = 100
    num_init_steps: Count = 0
    filter_importance: Literal["L1", "L2"] = "L2"
    prune_first_conv: Flag = False


class FilterPruning(_Algorithm):
    algorithm: Literal["filter_pruning"]
    pruning_init: Share = 0.0
    params: FilterParams = FilterParams()
    initializer: Initializer = Initializer()


SECTIONS: dict[str, type[_Algorithm]] = {
    "quantization": Quantization,
    "magnitude_sparsity": MagnitudeSparsity,
    "rb_sparsity": RBSparsity,
    "const_sparsity": ConstSparsity,
    "filter_pruning": FilterPruning,
}
"""By algorithm."""


class InputInfo(_Strict):
    sample_size: list[Axis] = [1, 3, 224, 224]
    type: Literal["float", "long"] = "float"
    filler: Literal["random", "ones", "zeros"] = "random"
    keyword: str | None = None


class Whole(BaseModel):
    """The config around the sections. Keys that NNCF does not know are the training script's."""

    model_config = ConfigDict(frozen=True, extra="allow")

    input_info: InputInfo | list[InputInfo] | None = None
    target_device: Literal["ANY", "CPU", "GPU", "NPU"] = "ANY"
    ignored_scopes: Scopes = ()  # type: ignore[assignment]
    target_scopes: Scopes = ()  # type: ignore[assignment]
    log_dir: str = "."
    compression: dict[str, Any] | list[dict[str, Any]] = []


def check(config: Mapping[str, Any]) -> None:
    """Raises ConfigError unless a whole config can be mapped to NNCF 3; says all that is wrong with NNCF's sections."""
    faults: list[str] = []
    try:
        Whole.model_validate(dict(config))
    except ValidationError as error:
        raise ConfigError(f"NNCF config: {config_error(error, Whole)}") from None
    sections = algorithm_sections(config)
    names = [str(section.get("algorithm")) for section in sections]
    for section, name in zip(sections, names, strict=True):
        if name in algorithms():
            continue
        if names.count(name) > 1:
            raise ConfigError(f"compression: two sections {name!r}")
        if name not in SECTIONS:
            mapped = nearest(name, [*SECTIONS, *algorithms()])
            faults.append(f"algorithm {name!r} cannot be mapped to NNCF 3; NNCF 2.19 may have it. {mapped}")
            continue
        try:
            SECTIONS[name].model_validate(dict(section))
        except ValidationError as error:
            faults.append(f"section {name!r} of the NNCF config, for NNCF 3: {config_error(error, SECTIONS[name])}")
    masks = sorted(name for name in names if name.endswith("_sparsity"))
    if len(masks) > 1:
        faults.append(f"compression: {' and '.join(masks)} both put masks on the same weights")
    if faults:
        raise ConfigError("; ".join(faults))
