"""The `.ilwp` file: what FORMAT.md describes, in code. Needs numpy only; reads, verifies and restores every file.

constriction, bitarray and numba make it faster where they are installed, and ml_dtypes gives bfloat16 and the 8-bit
floats their own dtypes.
"""

from ilwp_plugin.format.container import SectionBytes, TensorInfo, check_name, check_tensor
from ilwp_plugin.format.dither import dither
from ilwp_plugin.format.dtypes import DTYPES, as_numpy, cast, is_real
from ilwp_plugin.format.file import IlwpFile, measure, pack, read, reread, write
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.format.kernels import QuantizedLayer
from ilwp_plugin.format.norms import ROLES, MergedBatchNorm
from ilwp_plugin.format.origins import Origin, Provenance, ancestral_references
from ilwp_plugin.format.sections import (
    SECTIONS,
    ArrangedSection,
    ArrangedTensor,
    BatchNormSection,
    ChainSection,
    CodebookSection,
    CodebookTensor,
    CodedLayer,
    Context,
    DitheredSection,
    DitheredTensor,
    FieldSection,
    FloatSection,
    GraphSection,
    GridSection,
    Lattice,
    MetadataSection,
    OpaqueSection,
    RawSection,
    Section,
    SparseSection,
    StructureSection,
    Summary,
    arranged,
    storage_mode,
)

__all__ = [
    "DTYPES",
    "ROLES",
    "SECTIONS",
    "ArrangedSection",
    "ArrangedTensor",
    "BatchNormSection",
    "ChainSection",
    "CodebookSection",
    "CodebookTensor",
    "CodedLayer",
    "Context",
    "DitheredSection",
    "DitheredTensor",
    "FieldSection",
    "FloatSection",
    "GraphSection",
    "GridSection",
    "IlwpFile",
    "IntegerTensor",
    "Lattice",
    "MergedBatchNorm",
    "MetadataSection",
    "OpaqueSection",
    "Origin",
    "Provenance",
    "QuantizedLayer",
    "RawSection",
    "Section",
    "SectionBytes",
    "SparseSection",
    "StructureSection",
    "Summary",
    "TensorInfo",
    "ancestral_references",
    "arranged",
    "as_numpy",
    "cast",
    "check_name",
    "check_tensor",
    "dither",
    "is_real",
    "measure",
    "pack",
    "read",
    "reread",
    "storage_mode",
    "write",
]
