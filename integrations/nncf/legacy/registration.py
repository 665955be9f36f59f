"""Enter ilwp into the registries of NNCF 2.19."""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from nncf.common.composite_compression import CompositeCompressionAlgorithmController
from nncf.common.statistics import NNCFStatistics
from nncf.config.config import NNCFConfig
from nncf.config.schema import NNCF_CONFIG_SCHEMA, REF_VS_ALGO_SCHEMA
from nncf.torch.algo_selector import PT_COMPRESSION_ALGORITHMS
from nncf.torch.compression_method_api import PTCompressionAlgorithmController
from nncf.torch.dynamic_graph.patch_pytorch_state import PATCHING_STATE

from ilwp_plugin.errors import ConfigError, TrainingError, nearest

from ..config import ALGORITHM, Section, algorithm_sections, algorithms, section_schema
from .algorithm import Builder, Controller, QuantizationBesideIlwp
from .copying import copy_model
from .stripping import estimate_ilwp, save_ilwp

__all__ = ["register", "schema"]

_COPYING = (
    "nncf.api.compression",
    "nncf.common.composite_compression",
    "nncf.torch.algo_selector",
    "nncf.torch.pruning.filter_pruning.algo",
    "nncf.torch.quantization.algo",
    "nncf.torch.sparsity.base_algo",
)
"""Modules of NNCF that copy models."""


def register() -> None:
    """Make `{"algorithm": "ilwp"}`, and that of every other recipe, a section that NNCF knows.

    A second call does nothing.

    Raises:
        TrainingError: nncf.torch was imported before, without the tracing that JSON configs need.
    """
    if not PATCHING_STATE.operators_are_wrapped:
        raise TrainingError(
            "nncf.torch has been imported without NNCF_TORCH_LEGACY_TRACING=1, which create_compressed_model needs; "
            "import ilwp_integrations.nncf before it, set the variable, or start with `ilwp run`"
        )
    if ALGORITHM in PT_COMPRESSION_ALGORITHMS.registry_dict:
        return
    _add_recipes()
    _add_validation()
    _add_statistics()
    # The registry refuses a second entry of a name; this one stands in the place of NNCF's own.
    PT_COMPRESSION_ALGORITHMS.registry_dict["quantization"] = QuantizationBesideIlwp
    for name in _COPYING:
        import_module(name).copy_model = copy_model  # type: ignore[attr-defined]
    CompositeCompressionAlgorithmController.add = _add_ours_last
    PTCompressionAlgorithmController.save_ilwp = save_ilwp
    PTCompressionAlgorithmController.estimate_ilwp = estimate_ilwp


def _add_recipes() -> None:
    """Make the recipes that are registered by now algorithms, and no others of ours."""
    # One list stands in both branches, that of a single section and that of an array of them.
    options: list[Any] = NNCF_CONFIG_SCHEMA["properties"]["compression"]["oneOf"][0]["oneOf"]
    builders = PT_COMPRESSION_ALGORITHMS.registry_dict
    for name in [name for name, builder in builders.items() if issubclass(builder, Builder)]:
        del builders[name], REF_VS_ALGO_SCHEMA[name]
        options.remove({"$ref": f"#/$defs/{name}"})
    for name in algorithms():
        REF_VS_ALGO_SCHEMA[name] = section_schema(name)
        options.append({"$ref": f"#/$defs/{name}"})
        PT_COMPRESSION_ALGORITHMS.register(name)(type(f"{Builder.__name__}_{name}", (Builder,), {}))


def _add_validation() -> None:
    validate = NNCFConfig.validate

    def validate_with_ilwp(loaded_json: dict[str, Any]) -> None:
        _add_recipes()
        for section in algorithm_sections(loaded_json):
            name = section.get("algorithm")
            if name not in REF_VS_ALGO_SCHEMA and get_close_matches(str(name), algorithms()):
                raise ConfigError(f"algorithm {name!r} is unknown; {nearest(str(name), REF_VS_ALGO_SCHEMA)}")
        Section.find(loaded_json)  # says more than a schema can
        validate(loaded_json)

    NNCFConfig.validate = staticmethod(validate_with_ilwp)


_add = CompositeCompressionAlgorithmController.add


def _add_ours_last(self: CompositeCompressionAlgorithmController, controller: Any) -> None:
    """Ours is stripped last, whatever order the config lists: of what the others leave."""
    _add(self, controller)
    self._child_ctrls.sort(key=lambda child: isinstance(child, Controller))


def _add_statistics() -> None:
    """NNCFStatistics refuses what is no dataclass field of it."""
    field: Any = dataclasses.field(default=None)
    field.name, field.type = ALGORITHM, Any
    field._field_type = dataclasses._FIELD  # type: ignore[attr-defined]
    NNCFStatistics.__dataclass_fields__[ALGORITHM] = field
    setattr(NNCFStatistics, ALGORITHM, None)


def schema() -> dict[str, Any]:
    """The JSON schema of NNCF's config with our sections in it."""
    register()
    _add_recipes()
    found: dict[str, Any] = NNCFConfig.schema()
    return found
