"""The `ilwp` section of an NNCF JSON config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.training import Schedule

__all__ = ["ALGORITHM", "Section", "algorithm_sections", "section_schema", "sections_by_name"]

ALGORITHM = "ilwp"


@dataclass(frozen=True)
class Section:
    """An `ilwp` section, validated.

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
        fields = {key: value for key, value in section.items() if key not in ("algorithm", "params")}
        try:
            config = IlwpConfig.from_dict(fields)
            schedule = Schedule.from_dict(section.get("params", {}))
        except ConfigError as error:
            raise ConfigError(f"section {ALGORITHM!r} of the NNCF config: {error}") from None
        whole = whole or {}
        ignored = (*config.ignored_scopes, *(s for s in _listed(whole, "ignored_scopes")))
        targets = config.target_scopes or tuple(_listed(whole, "target_scopes"))
        return cls(config.replace(ignored_scopes=ignored, target_scopes=targets), schedule)

    @classmethod
    def find(cls, whole: Mapping[str, Any]) -> Section | None:
        """The `ilwp` section of a whole config, if it has one.

        Raises:
            ConfigError: it is not valid, or there are two.
        """
        found = [section for section in algorithm_sections(whole) if section.get("algorithm") == ALGORITHM]
        if len(found) > 1:
            raise ConfigError(f"the NNCF config has {len(found)} sections {ALGORITHM!r}, expected one")
        return cls.of(found[0], whole) if found else None


def algorithm_sections(whole: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sections of `compression`, which may be one object or a list of them."""
    compression = whole.get("compression", [])
    sections = [compression] if isinstance(compression, Mapping) else compression
    return [section for section in sections if isinstance(section, Mapping)]


def sections_by_name(whole: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sections of `compression` by algorithm."""
    return {str(section.get("algorithm")): section for section in algorithm_sections(whole)}


def section_schema() -> dict[str, Any]:
    """The JSON schema of the section, without references, so that it may stand anywhere in another schema."""
    config, schedule = IlwpConfig.model_json_schema(), Schedule.model_json_schema()
    properties = {name: _inline(value, config) for name, value in config["properties"].items()}
    return {
        "type": "object",
        "title": "Inter-layer weight prediction",
        "description": "Predicts depthwise kernels from the layer before and quantizes only what is left.",
        "required": ["algorithm"],
        "properties": {
            "algorithm": {"const": ALGORITHM},
            **properties,
            "params": {
                "type": "object",
                "properties": {name: _inline(value, schedule) for name, value in schedule["properties"].items()},
                "additionalProperties": False,
            },
        },
        "additionalProperties": False,
    }


def _listed(whole: Mapping[str, Any], key: str) -> list[str]:
    value = whole.get(key, [])
    return [value] if isinstance(value, str) else list(value or [])


def _inline(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inline(schema["$defs"][value["$ref"].rpartition("/")[2]], schema)
        return {key: _inline(item, schema) for key, item in value.items()}
    return [_inline(item, schema) for item in value] if isinstance(value, list) else value
