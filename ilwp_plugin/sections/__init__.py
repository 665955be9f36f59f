"""What the sections of a file hold. Encode and decode of each kind stand side by side in one module."""

import ilwp_plugin.format  # noqa: F401  registers the parts of the ledger
from ilwp_plugin.sections.batch_norm import ROLES, BatchNormSection
from ilwp_plugin.sections.chain import ChainSection, CodedLayer
from ilwp_plugin.sections.grid import GridSection
from ilwp_plugin.sections.metadata import decode_metadata, encode_metadata
from ilwp_plugin.sections.raw import decode_raw, encode_raw, raw_bytes
from ilwp_plugin.sections.structure import decode_structure, encode_structure

__all__ = [
    "ROLES",
    "BatchNormSection",
    "ChainSection",
    "CodedLayer",
    "GridSection",
    "decode_metadata",
    "decode_raw",
    "decode_structure",
    "encode_metadata",
    "encode_raw",
    "encode_structure",
    "raw_bytes",
]
