"""NNCF 2's JSON config for NNCF 3, which has none."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ilwp_plugin import strict_json
from ilwp_plugin.errors import ConfigError, nearest

from ..config import Section, algorithm_sections, algorithms, section_schema

__all__ = ["NNCFConfig", "check_keys", "example_input", "init_inputs", "register_default_init_args", "schema"]

_SCOPES = ("ignored_scopes", "target_scopes", "validate_scopes")
_SPARSITY = (
    "schedule",
    "sparsity_target",
    "sparsity_target_epoch",
    "sparsity_freeze_epoch",
    "multistep_steps",
    "multistep_sparsity_levels",
    "sparsity_level_setting_mode",
)

KNOWN: dict[str, Mapping[str, Sequence[str]]] = {
    "quantization": {
        "": ("preset", "initializer", "weights", "activations", "overflow_fix", "quantize_inputs", "quantize_outputs"),
        "initializer": ("range", "batchnorm_adaptation"),
        "initializer.range": ("num_init_samples", "type"),
        "initializer.batchnorm_adaptation": ("num_bn_adaptation_samples",),
        "weights": ("mode", "bits", "per_channel", "ignored_scopes"),
        "activations": ("mode", "bits", "per_channel"),
    },
    "magnitude_sparsity": {
        "": ("sparsity_init", "params", "initializer"),
        "params": (*_SPARSITY, "power", "concave", "weight_importance"),
        "initializer": ("batchnorm_adaptation",),
        "initializer.batchnorm_adaptation": ("num_bn_adaptation_samples",),
    },
    "rb_sparsity": {
        "": ("sparsity_init", "params", "compression_lr_multiplier"),
        "params": (*_SPARSITY, "step", "eps", "patience"),
    },
    "const_sparsity": {"": ()},
    "filter_pruning": {
        "": ("pruning_init", "params", "initializer"),
        "params": ("schedule", "pruning_target", "filter_importance", "prune_first_conv", "pruning_steps"),
        "initializer": ("batchnorm_adaptation",),
        "initializer.batchnorm_adaptation": ("num_bn_adaptation_samples",),
    },
}
"""What is mapped to NNCF 3, by algorithm and place in its section."""


class NNCFConfig(dict[str, Any]):
    """An NNCF 2 config: a dictionary that has been checked. Keys that NNCF does not know are the training script's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_loader: Iterable[Any] | None = None

    @classmethod
    def from_dict(cls, nncf_dict: Mapping[str, Any]) -> NNCFConfig:
        """From a dictionary, as JSON has it.

        Raises:
            ConfigError: it is not valid, or says what cannot be mapped to NNCF 3.
        """
        cls.validate(nncf_dict)
        return cls(copy.deepcopy(dict(nncf_dict)))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> NNCFConfig:
        """From a JSON file."""
        return cls.from_dict(strict_json.load(path))

    @staticmethod
    def validate(loaded_json: Mapping[str, Any]) -> None:
        """Raises ConfigError unless every section can be mapped to NNCF 3."""
        if not isinstance(loaded_json, Mapping):
            raise ConfigError(f"expected an object, got {type(loaded_json).__name__}")
        Section.find(loaded_json)
        names = [section.get("algorithm") for section in algorithm_sections(loaded_json)]
        for section, name in zip(algorithm_sections(loaded_json), names, strict=True):
            if names.count(name) > 1:
                raise ConfigError(f"compression: two sections {name!r}")
            if name not in algorithms():
                check_keys(section)
        masks = [str(name) for name in names if str(name).endswith("_sparsity")]
        if len(masks) > 1:
            raise ConfigError(f"compression: {' and '.join(sorted(masks))} both put masks on the same weights")


def check_keys(section: Mapping[str, Any]) -> None:
    """Raises ConfigError for an algorithm or an option that has no counterpart in NNCF 3."""
    name = section.get("algorithm")
    if name not in KNOWN:
        mapped = nearest(str(name), [*KNOWN, *algorithms()])
        raise ConfigError(f"algorithm {name!r} cannot be mapped to NNCF 3; NNCF 2.19 may have it. {mapped}")

    def check(values: Mapping[str, Any], place: str) -> None:
        known = (*KNOWN[name][place], *(("algorithm", *_SCOPES) if not place else ()))
        for key, value in values.items():
            path = f"{place}.{key}" if place else key
            if key not in known:
                raise ConfigError(f"{name}: {path!r} cannot be mapped to NNCF 3; {nearest(key, known)}")
            if path in KNOWN[name]:
                if not isinstance(value, Mapping):
                    raise ConfigError(f"{name}: {path!r}: expected an object, got {value!r}")
                check(value, path)

    check(section, "")


def schema() -> dict[str, Any]:
    """The JSON schema of what is mapped from NNCF 2's config, with our sections in it."""

    def place(name: str, path: str) -> dict[str, Any]:
        inner = KNOWN[name]
        properties: dict[str, Any] = {}
        for key in inner[path]:
            below = f"{path}.{key}" if path else key
            properties[key] = place(name, below) if below in inner else {}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    sections: dict[str, Any] = {name: section_schema(name) for name in algorithms()}
    for name in KNOWN:
        sections[name] = place(name, "")
        sections[name]["properties"] |= {"algorithm": {"const": name}, **{scope: {} for scope in _SCOPES}}
        sections[name]["required"] = ["algorithm"]
    one = {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in sections]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema",
        "title": "NNCF configuration with inter-layer weight prediction, as far as NNCF 3 can do it",
        "type": "object",
        "properties": {
            "input_info": {"type": ["object", "array"]},
            "compression": {"oneOf": [one, {"type": "array", "items": one}]},
            "target_device": {"enum": ["ANY", "CPU", "GPU", "NPU"]},
            "ignored_scopes": {"type": ["string", "array"]},
        },
        "$defs": sections,
    }


def register_default_init_args(
    nncf_config: NNCFConfig,
    train_loader: Iterable[Any],
    criterion: Callable[..., Any] | None = None,
    **unused: Any,
) -> NNCFConfig:
    """Give a config the data by which ranges and batch norms are initialized, as in NNCF 2.

    Args:
        nncf_config: the config.
        train_loader: yields batches whose first element is the input.
        criterion: not used by what is mapped to NNCF 3.
        unused: further arguments of NNCF 2.
    """
    nncf_config.init_loader = train_loader
    return nncf_config


def init_inputs(config: NNCFConfig) -> Iterator[Tensor]:
    """The inputs of the registered data, batch by batch."""
    for batch in config.init_loader or ():
        yield batch[0] if isinstance(batch, (tuple, list)) else batch


def example_input(config: NNCFConfig, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """An input of the shapes that `input_info` gives, else the first one of the registered data.

    Raises:
        ConfigError: neither is there, or `input_info` asks for what is no plain tensor.
    """
    infos = config.get("input_info")
    if infos is None:
        for inputs in init_inputs(config):
            return (inputs[:1].to(device),)
        raise ConfigError("the NNCF config has no input_info, and no data were registered for initialization")
    generator = torch.Generator().manual_seed(0)
    made: list[Tensor] = []
    for info in [infos] if isinstance(infos, Mapping) else infos:
        kind, filler = info.get("type", "float"), info.get("filler", "random")
        if kind not in ("float", "long") or filler not in ("random", "ones", "zeros") or "keyword" in info:
            raise ConfigError(f"input_info: {dict(info)} cannot be mapped to NNCF 3")
        shape = tuple(info.get("sample_size", (1, 3, 224, 224)))
        tensor = (
            torch.rand(shape, generator=generator) if filler == "random" else torch.full(shape, float(filler == "ones"))
        )
        made.append((tensor.long() if kind == "long" else tensor).to(device))
    return tuple(made)
