"""The one configuration model, for Python, JSON files, the command line and the toolkits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import (
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from ilwp_plugin import strict_json
from ilwp_plugin.errors import ConfigError, IlwpError, nearest
from ilwp_plugin.recipes import RECIPES
from ilwp_plugin.recipes.base import AUTO, Options, Recipe
from ilwp_plugin.recipes.batch_norm import BatchNorm, BatchNormOptions
from ilwp_plugin.recipes.grid import Grid, GridOptions
from ilwp_plugin.recipes.ilwp import RESIDUAL_SHARE, Ilwp, IlwpOptions, LayerOverride
from ilwp_plugin.validation import Translated, config_error

__all__ = ["PRESETS", "IlwpConfig", "LayerOverride"]

PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "paper": {
        "mode": "collocated",
        "anchor": "fp32",
        "residual_step": None,
        "weight_step": None,
        "batch_norm": "exact",
        "step_allocation": "equal",
    },
    "lossless": {"bits": None, "weight_step": None, "batch_norm": "exact"},
}
"""Fields that differ from their defaults, by name. `small` is the default: every weight, as far as is safe; `paper`
only the chains, as the paper has them; `lossless` changes no value."""

_EXPECTED = {"loss_weight": "a finite number >= 0, or 'auto'", "dead_zone": "a number from 0.5 to 1, or 'auto'"}
_DEFAULT_RECIPES: tuple[type[Recipe], ...] = (Ilwp, Grid, BatchNorm)


class IlwpConfig(Translated, IlwpOptions, GridOptions, BatchNormOptions):
    """How a model is regularized, quantized and stored. Frozen; unknown keys are refused.

    The fields are the options of three recipes: `ilwp` (chains), `grid` (all other weights) and `batch_norm`. With
    `recipes` others are named instead, in order of precedence, each with its own options.

    Each part works alone: `bits=None` quantizes no chain and still trains with the loss, `loss_weight=0` quantizes a
    model as it is, and `estimate` tells the sizes of any model under any configuration.

    Raises:
        ConfigError: on any invalid field, with its path and the nearest valid name.

    >>> IlwpConfig(mode="collocated", bits=5).bits
    5
    >>> IlwpConfig.from_dict({"recipes": [{"name": "grid", "weight_step": 0.05}]}).recipe_list()[0].options.weight_step
    0.05
    """

    model_config = ConfigDict(title="ILWP configuration")
    expected: ClassVar[Mapping[str, str]] = _EXPECTED

    preset: str | None = Field(
        default=None,
        description="Other defaults: 'small' (every weight, as far as is safe), 'paper' (the chains only, as in the "
        "paper) or 'lossless' (no value changes). Fields that are given count more.",
        json_schema_extra={"enum": [None, *sorted(PRESETS)]},
    )
    recipes: tuple[dict[str, Any], ...] | None = Field(
        default=None,
        description='Recipes in order of precedence, {"name": ..., its options}, instead of the three whose options '
        "are the other fields.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Presets, and the fields whose defaults follow from others."""
        if not isinstance(data, Mapping):
            return data
        values = dict(data)
        preset = values.get("preset")
        if preset is not None and preset not in PRESETS:
            raise ConfigError(f"preset: {preset!r} is none; {nearest(str(preset), PRESETS)}")
        if values.get("recipes") is not None:
            fields = IlwpConfig.model_fields  # what a subclass adds is no option of a recipe
            own = {
                name
                for name in values
                if name in fields and _plain(values[name]) != fields[name].get_default(call_default_factory=True)
            }
            if misplaced := sorted(own - {"recipes"}):
                raise ConfigError(f"`recipes` have their own options: move {', '.join(misplaced)} into one of them")
        if preset != "paper" and values.get("bits") is not None and "residual_step" not in values:
            values["residual_step"] = None
        return {**PRESETS[preset or "small"], **values}

    @field_validator("target_scopes", "ignored_scopes", "layers", mode="before")
    @classmethod
    def _listed(cls, value: object, info: Any) -> object:
        if isinstance(value, str):
            raise ConfigError(f"{info.field_name}: expected a list of names, got the string {value!r}")
        return value

    @field_validator("recipes", mode="after")
    @classmethod
    def _known_recipes(cls, value: tuple[dict[str, Any], ...] | None) -> tuple[dict[str, Any], ...] | None:
        if value is not None:
            _recipes(value)
        return value

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """`exclude_defaults` leaves out what the preset says, so that the rest restores the configuration."""
        if not info.exclude_defaults:
            values: dict[str, Any] = handler(self)
            return values
        default = type(self).model_validate({"preset": self.preset}).model_dump(mode=info.mode)
        values = self.model_dump(mode=info.mode)
        return {k: value for k, value in values.items() if value != (None if k == "preset" else default[k])}

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def __setattr__(self, name: str, value: object) -> None:
        raise ConfigError(f"{name}: a configuration is frozen; config.replace({name}=...) makes another one")

    @classmethod
    def of(cls, config: IlwpConfig | Mapping[str, Any] | str | None) -> IlwpConfig:
        """A configuration itself, one from its fields, that of a preset's name, or the default one for None."""
        if isinstance(config, IlwpConfig):
            return config
        if isinstance(config, str):
            return cls.from_dict({"preset": config})
        return cls() if config is None else cls.from_dict(config)

    @classmethod
    def paper(cls, **changes: Any) -> IlwpConfig:
        """The paper's own setting: chains with collocated prediction at 8 bits, everything else as it is."""
        return cls.from_dict({"preset": "paper", **changes})

    @classmethod
    def small(cls, **changes: Any) -> IlwpConfig:
        """The default: every weight, as far as is safe; as small as calibration inputs or a target allow."""
        return cls.from_dict({"preset": "small", **changes})

    @classmethod
    def lossless(cls, **changes: Any) -> IlwpConfig:
        """No value changes; everything is coded in as few bytes as that allows."""
        return cls.from_dict({"preset": "lossless", **changes})

    @classmethod
    def whole_model(cls, weight_step: float | None = None, *, calibrated: bool = True, **changes: Any) -> IlwpConfig:
        """All layers at a given mean step; docs/whole_model.md has the measurements.

        Args:
            weight_step: mean step of the weights outside chains; that of residuals is RESIDUAL_SHARE of it. None where
                a target is given to `compress`, or where it is to be chosen.
            calibrated: whether there will be calibration inputs.
            changes: of other fields.
        """
        fields: dict[str, Any] = {} if weight_step is None else {"weight_step": weight_step}
        if not calibrated:
            fields["step_allocation"] = "equal"
        return cls.from_dict({**fields, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IlwpConfig:
        """From a dictionary, as JSON has it. `$schema` is for editors, and says nothing here."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"expected an object with the fields of IlwpConfig, got {type(values).__name__}")
        return cls.model_validate({name: value for name, value in values.items() if name != "$schema"})

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
        """A copy with some fields changed, validated like a new one; defaults that follow from others follow again."""
        values = self.model_dump()
        if changes.get("bits") is not None and self.residual_step == AUTO:
            del values["residual_step"]
        return type(self).from_dict({**values, **changes})

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `from_dict` restores it without loss."""
        return self.model_dump(mode="json")

    def differences(self) -> dict[str, Any]:
        """The fields that are not as the preset has them, as JSON has it; `from_dict` restores them without loss."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def recipe_list(self) -> list[Recipe]:
        """The recipes, in order of precedence."""
        if self.recipes is not None:
            return _linked(_recipes(self.recipes))
        return _linked([recipe(self._options(recipe.options_type)) for recipe in _DEFAULT_RECIPES])

    def _options(self, kind: type[Options]) -> Options:
        return kind.model_construct(**{name: getattr(self, name) for name in kind.model_fields})

    def ilwp(self) -> IlwpOptions | None:
        """The options of the recipe `ilwp`; None where it is not among the recipes."""
        return next((recipe.options for recipe in self.recipe_list() if isinstance(recipe, Ilwp)), None)


def _plain(value: object) -> object:
    """A list as the tuple that it becomes."""
    return tuple(value) if isinstance(value, list) else value


def _recipes(specified: Sequence[Mapping[str, Any]]) -> list[Recipe]:
    """Recipes of the long form, validated."""
    recipes: list[Recipe] = []
    for number, values in enumerate(specified):
        where = f"recipes.{number}"
        name = values.get("name")
        if not isinstance(name, str) or name not in RECIPES:
            raise ConfigError(f"{where}.name: {name!r} is no recipe; {nearest(str(name), RECIPES)}")
        if any(recipe.name == name for recipe in recipes):
            raise ConfigError(f"{where}: {name!r} for the second time; give the layers to one of them by its scopes")
        recipe = RECIPES[name]
        options = {key: value for key, value in values.items() if key != "name"}
        if name == Ilwp.name and options.get("bits") is not None:
            options.setdefault("residual_step", None)
        try:
            recipes.append(recipe(recipe.options_type.model_validate(options)))
        except ValidationError as error:
            raise config_error(error, recipe.options_type, where) from None
    if not recipes:
        raise ConfigError(f"recipes: expected one or more; {nearest('', RECIPES)}")
    return recipes


def _linked(recipes: list[Recipe]) -> list[Recipe]:
    """Residual steps that follow from the step of the other weights."""
    step = next((recipe.options.weight_step for recipe in recipes if isinstance(recipe, Grid)), AUTO)
    if not isinstance(step, float):
        return recipes
    return [
        Ilwp(recipe.options.changed(residual_step=step * RESIDUAL_SHARE))
        if isinstance(recipe, Ilwp) and recipe.options.residual_step == AUTO
        else recipe
        for recipe in recipes
    ]


if __name__ == "__main__":  # the file that `ilwp schema` prints
    print(json.dumps(IlwpConfig.model_json_schema(), indent=1))
