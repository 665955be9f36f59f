"""Entropy coders: integer symbols to bytes and back. They know no model and no file."""

from ilwp_plugin.format.coding.ans import AnsCoder, AnsModel
from ilwp_plugin.format.coding.base import AUTO, CODERS, Coder, Histogram, Run, Segment, Symbols
from ilwp_plugin.format.coding.classes import ClassCoder
from ilwp_plugin.format.coding.fitting import Fit, best_low_bits, estimated_bytes, fit_coder
from ilwp_plugin.format.coding.huffman import HuffmanCode, HuffmanCoder
from ilwp_plugin.format.coding.indices import read_indices, write_indices
from ilwp_plugin.format.coding.universal import LzmaCoder

__all__ = [
    "AUTO",
    "CODERS",
    "AnsCoder",
    "AnsModel",
    "ClassCoder",
    "Coder",
    "Fit",
    "Histogram",
    "HuffmanCode",
    "HuffmanCoder",
    "LzmaCoder",
    "Run",
    "Segment",
    "Symbols",
    "best_low_bits",
    "estimated_bytes",
    "fit_coder",
    "read_indices",
    "write_indices",
]
