"""Entropy coders: integer symbols to bytes and back. They know no model and no file."""

from ilwp_plugin.coding.base import CODERS, Coder, Histogram, coder_of_id
from ilwp_plugin.coding.huffman import HuffmanCode, HuffmanCoder
from ilwp_plugin.coding.indices import read_indices, write_indices

__all__ = [
    "CODERS",
    "Coder",
    "Histogram",
    "HuffmanCode",
    "HuffmanCoder",
    "coder_of_id",
    "read_indices",
    "write_indices",
]
