"""Tensors that nothing quantizes, in whichever section holds them in the fewest bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ilwp_plugin.container import SectionKind, TensorInfo
from ilwp_plugin.sections.fields import FieldSection, split_fields
from ilwp_plugin.sections.sparse import SparseSection, split_sparse

__all__ = ["LOSSLESS", "LosslessSection", "split_lossless"]

LosslessSection = SparseSection | FieldSection

LOSSLESS: dict[SectionKind, type[LosslessSection]] = {
    SectionKind.SPARSE: SparseSection,
    SectionKind.FIELDS: FieldSection,
}


def split_lossless(
    directory: Sequence[TensorInfo], raw: Mapping[str, Tensor]
) -> tuple[list[TensorInfo], dict[str, Tensor], tuple[LosslessSection, ...]]:
    """Take what is smaller in a section of its own out of the raw tensors.

    Args:
        directory: of the file.
        raw: its raw tensors, by name.

    Returns:
        The directory, the raw tensors that are left, and the sections of the others.
    """
    infos, left, sparse = split_sparse(directory, raw)
    infos, left, fields = split_fields(infos, left)
    return infos, left, tuple(section for section in (sparse, fields) if section is not None)
