"""Inter-Layer Weight Prediction: convolutional networks in a file that is really small."""

from ilwp_plugin._version import __version__
from ilwp_plugin.compression import CompressedModel, LayerSummary, compress, estimate, load, loads
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.ledger import LayerBytes, Ledger
from ilwp_plugin.method.grid import IntegerTensor

__all__ = [
    "CompressedModel",
    "IlwpConfig",
    "IntegerTensor",
    "LayerBytes",
    "LayerSummary",
    "Ledger",
    "__version__",
    "compress",
    "estimate",
    "load",
    "loads",
]
