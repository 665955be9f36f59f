"""What the sections of a file hold. Encode and decode of each kind stand side by side in one module."""

from ilwp_plugin.format.sections.arranged import ArrangedSection, ArrangedTensor, arranged
from ilwp_plugin.format.sections.base import SECTIONS, Context, OpaqueSection, Section, Summary
from ilwp_plugin.format.sections.batch_norm import BatchNormSection
from ilwp_plugin.format.sections.chain import ChainSection, CodedLayer, storage_mode
from ilwp_plugin.format.sections.codebook import CodebookSection, CodebookTensor
from ilwp_plugin.format.sections.dithered import DitheredSection, DitheredTensor, Lattice
from ilwp_plugin.format.sections.fields import FieldSection
from ilwp_plugin.format.sections.floats import FloatSection
from ilwp_plugin.format.sections.graph import GraphSection
from ilwp_plugin.format.sections.grid import GridSection
from ilwp_plugin.format.sections.metadata import MetadataSection
from ilwp_plugin.format.sections.raw import RawSection
from ilwp_plugin.format.sections.sparse import SparseSection
from ilwp_plugin.format.sections.structure import StructureSection

__all__ = [
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
    "Lattice",
    "MetadataSection",
    "OpaqueSection",
    "RawSection",
    "Section",
    "SparseSection",
    "StructureSection",
    "Summary",
    "arranged",
    "storage_mode",
]
