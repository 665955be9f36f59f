"""What a file says of the layers that predict each other."""

from ilwp_plugin import CompressedModel
from ilwp_plugin.format.sections import Summary


def chained(compressed: CompressedModel | None) -> list[Summary]:
    """Of the layers of chains, in order."""
    assert compressed is not None
    return [layer for layer in compressed.layers if layer.kind == "chain"]


def modes(compressed: CompressedModel | None) -> list[str]:
    """Their modes of prediction."""
    return [layer.details["mode"] for layer in chained(compressed)]
