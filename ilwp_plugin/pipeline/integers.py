"""Integer codes of a toolkit beside what a file holds already."""

from __future__ import annotations

from collections.abc import Mapping

from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.format.sections import GridSection
from ilwp_plugin.models.tensors import restored
from ilwp_plugin.pipeline.file import CompressedModel, assembled, untouched
from ilwp_plugin.pipeline.plan import directory_of
from ilwp_plugin.recipes.base import AUTO

__all__ = ["with_integers"]


def with_integers(compressed: CompressedModel, values: Mapping[str, IntegerTensor]) -> CompressedModel:
    """The same compressed tensors, with others as integer codes.

    Args:
        compressed: a model as its file holds it.
        values: by name of tensors that it stores as they are.
    """
    if not values:
        return compressed
    state = compressed.state_dict()
    for name, value in values.items():
        state[name] = restored(value).to(state[name].dtype)
    names = untouched(compressed)
    kept = [section for section in compressed.sections if not set(section.names) <= names or not section.names]
    grids = [section for section in kept if isinstance(section, GridSection)]
    codes = {**compressed.quantized, **values}
    claimed = [*(name for section in kept for name in section.names), *values]
    directory, raw, infos = directory_of(state, claimed)
    ordered = [name for name in state if name in codes]  # depthwise layers are predicted by the one before
    grid = GridSection([infos[name] for name in ordered], [codes[name] for name in ordered], AUTO)
    sections = [section for section in kept if section not in grids and section.name != "metadata"]
    return assembled(directory, [*sections, grid], raw, compressed.metadata)
