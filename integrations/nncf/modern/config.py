"""NNCF 2's JSON config for NNCF 3, which has none."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ilwp_plugin import strict_json
from ilwp_plugin.errors import ConfigError

from ..calibrating import inputs_of
from ..config import Section, algorithms, plain_schema, section_schema
from .sections import SECTIONS, Whole, check

__all__ = ["NNCFConfig", "example_input", "init_inputs", "register_default_init_args", "schema"]


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

    def register_extra_structs(self, struct_list: Iterable[Any]) -> None:
        """Give the config the data of NNCF 2's structures for initialization."""
        for struct in struct_list:
            loader = getattr(struct, "data_loader", None)
            self.init_loader = self.init_loader if loader is None else loader

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> NNCFConfig:
        """From a JSON file."""
        return cls.from_dict(strict_json.load(path))

    @staticmethod
    def validate(loaded_json: Mapping[str, Any]) -> None:
        """Raises ConfigError unless every section can be mapped to NNCF 3."""
        if not isinstance(loaded_json, Mapping):
            raise ConfigError(f"expected an object, got {type(loaded_json).__name__}")
        check(loaded_json)
        Section.find(loaded_json)


def schema() -> dict[str, Any]:
    """The JSON schema of what is mapped from NNCF 2's config, with our sections in it."""
    sections: dict[str, Any] = {name: section_schema(name) for name in algorithms()}
    sections |= {name: plain_schema(model) for name, model in SECTIONS.items()}
    one = {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in sections]}
    whole = plain_schema(Whole)
    whole["properties"]["compression"] = {"oneOf": [one, {"type": "array", "items": one}]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema",
        **whole,
        "title": "NNCF configuration with inter-layer weight prediction, as far as NNCF 3 can do it",
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


def init_inputs(config: NNCFConfig) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of the registered data, batch by batch.

    Raises:
        ConfigError: a loader that gives keyword arguments.
    """
    loader = config.init_loader
    for arguments, named in inputs_of(loader or ()):
        if named:
            raise ConfigError(f"{type(loader).__name__}.get_inputs: keyword arguments cannot be mapped to NNCF 3")
        yield arguments


def example_input(config: NNCFConfig, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """An input of the shapes that `input_info` gives, else the first one of the registered data.

    Raises:
        ConfigError: neither is there, or `input_info` asks for what is no plain tensor.
    """
    infos = config.get("input_info")
    if infos is None:
        for inputs in init_inputs(config):
            return tuple(tensor[:1].to(device) for tensor in inputs)
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
