"""The sections of ilwp's recipes in an NNCF JSON config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.recipes import RECIPES
from ilwp_plugin.training import Schedule

__all__ = [
    "ALGORITHM",
    "Section",
    "algorithm_sections",
    "algorithms",
    "plain_schema",
    "section_schema",
    "sections_by_name",
    "with_scopes",
    "within_int8",
]

ALGORITHM = "ilwp"
"""The section with all fields of IlwpConfig; a section of any other recipe has the options of that one alone."""

_OF_NNCF = frozenset(
    {
        "binarization",
        "const_sparsity",
        "experimental_quantization",
        "filter_pruning",
        "knowledge_distillation",
        "magnitude_sparsity",
        "movement_sparsity",
        "quantization",
        "rb_sparsity",
    }
)
"""A recipe of such a name has to be called `{"algorithm": "ilwp", "recipes": [{"name": ...}]}`."""


def algorithms() -> list[str]:
    """The names of our sections: `ilwp`, and every other recipe that is registered by now."""
    return [ALGORITHM, *(name for name in RECIPES if name != ALGORITHM and name not in _OF_NNCF)]


@dataclass(frozen=True)
class Section:
    """A section of ours, validated.

    Attributes:
        config: all its fields but `params`, with the scopes of the whole config added.
        schedule: its `params`.
    """

    config: IlwpConfig
    schedule: Schedule

    @classmethod
    def of(cls, section: Mapping[str, Any], whole: Mapping[str, Any] | None = None) -> Section:
        """From JSON.

        Args:
            section: the section itself.
            whole: the config that it stands in, whose `ignored_scopes` and `target_scopes` count for every algorithm.

        Raises:
            ConfigError: it is not valid.
        """
        name = str(section.get("algorithm", ALGORITHM))
        fields = {key: value for key, value in section.items() if key not in ("algorithm", "params")}
        if name != ALGORITHM:
            fields = {"recipes": [{"name": name, **fields}]}
        try:
            config = IlwpConfig.from_dict(fields)
            schedule = Schedule.from_dict(section.get("params", {}))
        except ConfigError as error:
            text = str(error) if name == ALGORITHM else str(error).replace("recipes.0.", "")
            raise ConfigError(f"section {name!r} of the NNCF config: {text}") from None
        whole = whole or {}

        def added(ignored: Sequence[str], targets: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
            return (*ignored, *_listed(whole, "ignored_scopes")), targets or _listed(whole, "target_scopes")

        if "quantization" in sections_by_name(whole):
            config = within_int8(config)
        return cls(with_scopes(config, added), schedule)

    @classmethod
    def find(cls, whole: Mapping[str, Any]) -> Section | None:
        """The section of ours in a whole config, if it has one.

        Raises:
            ConfigError: it is not valid, or there are two.
        """
        known = algorithms()
        found = [section for section in algorithm_sections(whole) if section.get("algorithm") in known]
        if len(found) > 1:
            names = [section["algorithm"] for section in found]
            raise ConfigError(
                f"the NNCF config has {len(found)} sections of ilwp ({', '.join(map(repr, names))}), expected one; "
                'several recipes are {"algorithm": "ilwp", "recipes": [{"name": ...}, ...]}'
            )
        return cls.of(found[0], whole) if found else None


_WEIGHT_BITS = 7
"""Of codes under int8: as many as NNCF's overflow fix leaves, so that every engine can run them."""


def within_int8(config: IlwpConfig) -> IlwpConfig:
    """Codes of weights fit those of int8, so that an engine runs in int8 what the model trained with."""
    if config.recipes is not None:
        bits = {"weight_bits": _WEIGHT_BITS}
        return config.replace(recipes=[bits | r if r["name"] == "grid" else r for r in config.recipes])
    if "weight_bits" in config.model_fields_set or config.weight_step is None:
        return config
    return config.replace(weight_bits=_WEIGHT_BITS)


Scopes = Callable[[Sequence[str], Sequence[str]], tuple[Sequence[str], Sequence[str]]]


def with_scopes(config: IlwpConfig, changed: Scopes) -> IlwpConfig:
    """A configuration with other scopes, in each of its recipes.

    Args:
        config: the configuration.
        changed: takes `ignored_scopes` and `target_scopes` of a recipe, and returns new ones.
    """
    if config.recipes is None:
        ignored, targets = changed(config.ignored_scopes, config.target_scopes)
        return config.replace(ignored_scopes=list(ignored), target_scopes=list(targets))
    recipes = []
    for recipe in config.recipes:
        ignored, targets = changed(recipe.get("ignored_scopes", ()), recipe.get("target_scopes", ()))
        scopes = {"ignored_scopes": list(ignored), "target_scopes": list(targets)}
        recipes.append({**recipe, **{key: value for key, value in scopes.items() if value or key in recipe}})
    return config.replace(recipes=recipes)


def algorithm_sections(whole: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sections of `compression`, which may be one object or a list of them."""
    compression = whole.get("compression", [])
    sections = [compression] if isinstance(compression, Mapping) else compression
    return [section for section in sections if isinstance(section, Mapping)]


def sections_by_name(whole: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sections of `compression` by algorithm."""
    return {str(section.get("algorithm")): section for section in algorithm_sections(whole)}


def section_schema(name: str = ALGORITHM) -> dict[str, Any]:
    """The JSON schema of a section of ours, without references, so that it may stand anywhere in another schema."""
    options = plain_schema(IlwpConfig if name == ALGORITHM else RECIPES[name].options_type)
    title = "Inter-layer weight prediction" if name == ALGORITHM else f"The recipe {name} of ilwp"
    params = plain_schema(Schedule)["properties"]
    return {
        "type": "object",
        "title": title,
        "description": " ".join((RECIPES[name].__doc__ or title).split()),
        "required": ["algorithm"],
        "properties": {
            "algorithm": {"const": name},
            **options.get("properties", {}),
            "params": {"type": "object", "properties": params, "additionalProperties": False},
        },
        "additionalProperties": False,
    }


def plain_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model without references, so that it may stand anywhere in another schema."""
    whole = model.model_json_schema()
    definitions = {"$defs": whole.pop("$defs", {})}
    found: dict[str, Any] = _inline(whole, definitions)
    return found


def _listed(whole: Mapping[str, Any], key: str) -> list[str]:
    value = whole.get(key, [])
    return [value] if isinstance(value, str) else list(value or [])


def _inline(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inline(schema["$defs"][value["$ref"].rpartition("/")[2]], schema)
        return {key: _inline(item, schema) for key, item in value.items()}
    return [_inline(item, schema) for item in value] if isinstance(value, list) else value
