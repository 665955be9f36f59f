"""The one configuration model, for Python, JSON files, the command line and the toolkits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from ilwp_plugin import strict_json
from ilwp_plugin.coding import AUTO, CODERS
from ilwp_plugin.errors import ConfigError, IlwpError, nearest
from ilwp_plugin.method.batch_norm import MANTISSA_BITS
from ilwp_plugin.method.prediction import PREDICTORS
from ilwp_plugin.method.quantization import BITS, STEP_RULES
from ilwp_plugin.models.chains import scope_matches
from ilwp_plugin.registry import Registry

__all__ = ["Anchor", "IlwpConfig", "LayerOverride"]

Anchor = Literal["fp32", "fp16", "quantized"]

Bits = Annotated[int, Field(strict=True, ge=BITS[0], le=BITS[-1])]
Step = Annotated[float, Field(strict=True, gt=0, le=float(np.finfo(np.float32).max), allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Names = Annotated[tuple[Annotated[str, Field(strict=True, min_length=1)], ...], Field()]


def _name(registry: Registry[Any]) -> dict[str, Any]:
    """The schema of a name in a registry; validation looks it up when it is used, so plugins may register late."""
    return {"enum": sorted(registry)}


_REGISTRIES: dict[str, Registry[Any]] = {"mode": PREDICTORS, "range": STEP_RULES, "coder": CODERS}


def _registered(value: object, info: Any) -> object:
    registry = _REGISTRIES[info.field_name]
    known = [*registry, AUTO] if info.field_name != "range" else [*registry]
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{info.field_name}: {value!r} is no {registry.what}; {nearest(str(value), known)}")
    return value


class LayerOverride(BaseModel):
    """What some layers do otherwise; None keeps what the configuration says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: str | None = Field(default=None, json_schema_extra=_name(PREDICTORS))
    bits: Bits | None = None
    range: str | None = Field(default=None, json_schema_extra=_name(STEP_RULES))

    @field_validator("mode", "range", mode="before")
    @classmethod
    def _known(cls, value: object, info: Any) -> object:
        return None if value is None else _registered(value, info)


RESIDUAL_SHARE = 0.8
"""Step of the residuals in steps of the other weights: depthwise kernels are few, and errors in them cost more."""

CALIBRATED_DEAD_ZONE = 0.66
"""Where error feedback and batch norms make up for what becomes 0; in steps."""


class IlwpConfig(BaseModel):
    """How a model is regularized, quantized and stored. Frozen; unknown keys are refused.

    Each part works alone: `bits=None` trains with the loss and quantizes nothing, `loss_weight=0` quantizes a model as
    it is, and `estimate` tells the sizes of any model under any configuration.

    Raises:
        ConfigError: on any invalid field, with its path and the nearest valid name.

    >>> IlwpConfig(mode="collocated", bits=5).bits
    5
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="ILWP configuration")

    mode: str = Field(
        default="collocated",
        description="Prediction mode, or 'auto': for each layer the one that is best at the same step, in bits and "
        "error together.",
        json_schema_extra={"enum": [AUTO, *sorted(PREDICTORS)]},
    )
    bits: Bits | None = Field(
        default=8,
        description="Bits of a residual code, 2 to 8; null quantizes nothing. Under mode 'auto', and with "
        "`residual_step`, codes have as many bits as they need.",
    )
    loss_weight: Weight | Literal["auto"] = Field(
        default="auto",
        description="Weight of the inter-layer loss (the paper's lambda), a number >= 0, or 'auto', which scales it to "
        "the length of the training run.",
    )
    scope: Literal["depthwise", "conv"] = Field(
        default="depthwise",
        description="Which convolutions: the depthwise ones, or every one with kernels larger than 1x1, each slice of "
        "its weight counting as a kernel.",
    )
    anchor: Anchor = Field(
        default="fp32",
        description="How the first layer of a chain is stored. Weights of 16 bits are stored as they are under 'fp32'.",
    )
    range: str = Field(
        default="max",
        description="How the quantizer sets its step from the residuals of a layer: 'max' clips nothing, 'percentile' "
        "clips above the 99.9th, 'mse' minimises the squared error.",
        json_schema_extra=_name(STEP_RULES),
    )
    target_scopes: Names = Field(
        default=(),
        description="Layers to take, by name, by the name of a module that holds them, or by '{re}regular expression'; "
        "empty takes all.",
    )
    ignored_scopes: Names = Field(default=(), description="Layers to leave out, named likewise.")
    layers: Names | None = Field(
        default=None,
        description="The layers in the order in which they predict each other, instead of a traced order.",
    )
    align: bool = Field(
        default=False,
        description="Permute, flip and scale channels first, where that does not change what the network computes, so "
        "that kernels resemble their references. Needs example inputs and torch-pruning.",
        strict=True,
    )
    overrides: dict[str, LayerOverride] = Field(
        default_factory=dict,
        description="Other bits, mode or range for some layers: objects by layer, named as in the scopes. Of several "
        "that name a layer the last counts.",
    )
    coder: str = Field(
        default=AUTO,
        description="Entropy coder of all codes: huffman (the paper's), ans, or 'auto', the smaller for each group of "
        "layers.",
        json_schema_extra={"enum": [AUTO, *sorted(CODERS)]},
    )
    residual_step: Step | None = Field(
        default=None,
        description="One absolute step for the residuals of all chains, in units of weight, instead of one for each "
        "layer from its bits and range.",
    )
    step_allocation: Literal["equal", "measured"] = Field(
        default="equal",
        description="'measured' gives each layer a step of its own, smaller where an error changes the outputs more: "
        "`residual_step` and `weight_step` are then geometric means. Needs calibration inputs.",
    )
    rate_weight: Weight = Field(
        default=0.0,
        description="Rate-distortion optimised rounding of residuals: what a bit is worth, in squared steps; 0 rounds "
        "to the nearest.",
    )
    weight_step: Step | None = Field(
        default=None,
        description="One absolute step for the weights of all other convolutions and linear layers, in units of "
        "weight; null keeps them as they are.",
    )
    dead_zone: Annotated[float, Field(strict=True, ge=0.5, le=1)] = Field(
        default=0.5,
        description="Weights of these other layers become 0 below this many steps, 0.5 to 1; 0.5 is plain rounding. "
        "More than 0.5 needs calibration inputs, so that the batch norms can follow.",
    )
    feedback_damping: Step = Field(
        default=10.0,
        description="Damping of the error feedback of these other layers, as a share of the mean input energy. Small "
        "values, like .03, follow the calibration inputs more closely, at the price of larger codes.",
    )
    batch_norm: Literal["exact", "merged"] = Field(
        default="exact",
        description="'merged' stores a batch norm as the scale and shift that it is at inference, and biases on a "
        "grid of a quarter of the weight step.",
    )
    batch_norm_bits: Annotated[int, Field(strict=True, ge=MANTISSA_BITS[0], le=MANTISSA_BITS[-1])] = Field(
        default=5,
        description="Bits of mantissa of a merged scale: its relative error, and that of the shift against the spread "
        "of the output, is at most 2^-(bits + 1).",
    )
    batch_norm_eps: Annotated[float, Field(strict=True, ge=0, lt=1)] | None = Field(
        default=None, description="The eps of the batch norms of a state dict, which does not tell it; to merge them."
    )

    @field_validator("mode", "range", "coder", mode="before")
    @classmethod
    def _registered(cls, value: object, info: Any) -> object:
        return _registered(value, info)

    @field_validator("target_scopes", "ignored_scopes", "layers", mode="before")
    @classmethod
    def _listed(cls, value: object, info: Any) -> object:
        if isinstance(value, str):
            raise ConfigError(f"{info.field_name}: expected a list of names, got the string {value!r}")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _translate_errors(cls, data: Any, handler: Callable[[Any], IlwpConfig]) -> IlwpConfig:
        try:
            return handler(data)
        except ValidationError as error:
            messages = dict.fromkeys(_message(detail) for detail in error.errors())
            raise ConfigError("; ".join(messages)) from None

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @classmethod
    def of(cls, config: IlwpConfig | Mapping[str, Any] | None) -> IlwpConfig:
        """A configuration itself, one from its fields, or the default one for None."""
        if isinstance(config, IlwpConfig):
            return config
        return cls() if config is None else cls.from_dict(config)

    def __setattr__(self, name: str, value: object) -> None:
        raise ConfigError(f"{name}: a configuration is frozen; config.replace({name}=...) makes another one")

    @classmethod
    def whole_model(cls, weight_step: float | None = None, *, calibrated: bool = True, **changes: Any) -> IlwpConfig:
        """What is good for all layers of a trained network; docs/whole_model.md has the measurements.

        Args:
            weight_step: mean step of the weights outside chains; that of residuals is RESIDUAL_SHARE of it. None where
                a target is given to `compress`, which finds both.
            calibrated: whether there will be calibration inputs.
            changes: of other fields.
        """
        fields: dict[str, Any] = {
            "mode": AUTO,
            "anchor": "quantized",
            "weight_step": weight_step,
            "residual_step": None if weight_step is None else weight_step * RESIDUAL_SHARE,
            "batch_norm": "merged",
            "batch_norm_bits": 4 if calibrated else 8,
        }
        if calibrated:
            fields.update(step_allocation="measured", dead_zone=CALIBRATED_DEAD_ZONE)
        return cls.from_dict({**fields, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IlwpConfig:
        """From a dictionary, as JSON has it."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"expected an object with the fields of IlwpConfig, got {type(values).__name__}")
        return cls.model_validate(dict(values))

    @classmethod
    def from_json(cls, text: str) -> IlwpConfig:
        """From JSON text; duplicate keys and NaN are refused."""
        try:
            values = strict_json.loads(text)
        except ValueError as error:
            raise ConfigError(f"not JSON: {error}") from None
        return cls.from_dict(values)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> IlwpConfig:
        """From a JSON file."""
        values = strict_json.load(path)
        try:
            return cls.from_dict(values)
        except IlwpError as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from None

    def replace(self, **changes: Any) -> IlwpConfig:
        """A copy with some fields changed, validated like a new one."""
        return IlwpConfig.from_dict({**self.model_dump(), **changes})

    def for_layer(self, layer: str) -> IlwpConfig:
        """The configuration of one layer: this one with the last override that names the layer."""
        chosen = [override for pattern, override in self.overrides.items() if scope_matches(pattern, layer)]
        return self.replace(**chosen[-1].model_dump(exclude_none=True)) if chosen else self

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `from_dict` restores it without loss."""
        return self.model_dump(mode="json")


def _message(detail: ErrorDetails) -> str:
    """One pydantic error as a sentence: the path of the field, what was expected, what was found."""
    # pydantic names the members of a union in the path; a user knows only fields and positions.
    fields = IlwpConfig.model_fields
    path = ".".join(str(part) for i, part in enumerate(detail["loc"]) if i == 0 or isinstance(part, int))
    if path == "overrides":
        return (
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}, got {detail['input']!r}; known: mode, bits, range"
        )
    if detail["type"] == "extra_forbidden":
        return f"unknown key {path!r}; {nearest(path, fields)}"
    if path == "loss_weight":  # pydantic reports each member of the union
        return f"loss_weight: expected a finite number >= 0, or 'auto', got {detail['input']!r}"
    return f"{path}: {detail['msg']}, got {detail['input']!r}"
