"""Small state dicts, and what has to be true of every file made of one."""

import torch
from torch import Tensor

from ilwp_plugin import CompressedModel, loads
from ilwp_plugin.models.tensors import same_bits
from ilwp_plugin.pipeline.file import untouched


def pair(kernels: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The smallest model with a chain."""
    generator = torch.Generator().manual_seed(kernels)
    return {
        "a.weight": torch.randn(4, 1, 3, 3, generator=generator).to(dtype),
        "b.weight": torch.randn(kernels, 1, 3, 3, generator=generator).to(dtype),
    }


def check_round_trip(state: dict[str, Tensor], model: CompressedModel) -> None:
    """The file is what the ledger says, restores what the model does, and each value is within half a step."""
    data = model.to_bytes()
    restored = loads(data)
    assert restored.ledger == model.ledger and model.ledger.file_bytes == len(data)
    assert sum(layer.file_bytes for layer in model.ledger.layers.values()) <= len(data)
    again = restored.to_bytes()  # of several layers other ones may share a table once the coder is known
    assert again == data or (model.quantized and len(again) < 1.001 * len(data))
    assert restored.layers == model.layers
    values, expected = restored.state_dict(), model.state_dict()
    assert list(values) == list(state) == list(expected)
    exact = untouched(model)
    steps = {layer.name: layer.details["step"] for layer in model.layers if "step" in layer.details}
    for info in model.tensors:
        name, original = info.name, state[info.name]
        owner = model.tensors[info.alias_of].name if info.storage == "alias" else name
        assert same_bits(values[name], expected[name]), name
        if owner in exact:
            assert same_bits(values[name], original), name
        elif owner in steps:
            half = steps[owner] / 2 * (1 + 1e-4) + float(original.abs().max()) * torch.finfo(original.dtype).eps + 1e-43
            assert float((values[name].double() - original.double()).abs().max()) <= half, name
