"""Entropy coders: integer symbols to bytes and back. They know no model and no file."""

from ilwp_plugin.coding.ans import AnsCoder, AnsModel
from ilwp_plugin.coding.base import AUTO, CODERS, Coder, Fit, Histogram, Symbols, coder_of_id, fit_coder
from ilwp_plugin.coding.huffman import HuffmanCode, HuffmanCoder
from ilwp_plugin.coding.indices import read_indices, write_indices

__all__ = [
    "AUTO",
    "CODERS",
    "AnsCoder",
    "AnsModel",
    "Coder",
    "Fit",
    "Histogram",
    "HuffmanCode",
    "HuffmanCoder",
    "Symbols",
    "coder_of_id",
    "fit_coder",
    "read_indices",
    "write_indices",
]
