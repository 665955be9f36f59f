"""Back from the file of a model that NNCF 2.19 has quantized."""

from __future__ import annotations

import os

import nncf
import torch
from nncf import NNCFConfig
from nncf.torch import create_compressed_model
from torch import nn
from torch.ao.quantization import FakeQuantize

from ilwp_plugin import CompressedModel, load
from ilwp_plugin.errors import IlwpError, TensorError, TrainingError

from ..quantizers import read_description
from .hooks import weight_quantizers

__all__ = ["restore"]


@torch.no_grad()
def restore(file: CompressedModel | str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """The model that a file comes from, as NNCF stripped it: with the quantizers of its weights and activations.

    Args:
        file: of a model that NNCF has quantized, or its path; of any other one, this is `file.restore_weights(model)`.
        model: as its class makes it; it is changed in place.

    Returns:
        The model, in eval mode.

    Raises:
        TensorError: the file does not fit the model, or comes from NNCF 3.
        TrainingError: NNCF cannot make the model from what the file says.
        FormatError: the metadata of the file are damaged.
    """
    file = file if isinstance(file, CompressedModel) else load(file)
    quantizers, more = read_description(file)
    if quantizers and "config" not in more:
        raise TensorError(
            "the file does not say how NNCF 2 makes its model: it comes from NNCF 3, or from a model whose inputs "
            "only a `dummy_forward_fn` knows; file.restore_weights(model) gives the weights alone"
        )
    file.restore_weights(model)
    if not quantizers:
        return model.eval()
    try:
        config = NNCFConfig.from_dict(more["config"])
        controller, _ = create_compressed_model(model, config, dump_graphs=False)
        restored: nn.Module = controller.strip(do_copy=False)
    except IlwpError:
        raise
    except (nncf.InternalError, nncf.ValidationError, RuntimeError, ValueError) as error:
        raise TrainingError(f"NNCF cannot make the model of the file again: {error}") from error
    paths = weight_quantizers(restored)
    for quantizer in quantizers:
        path = quantizer.path if quantizer.weight is None else paths.pop(quantizer.weight, "")
        module = dict(restored.named_modules()).get(path)
        if not isinstance(module, FakeQuantize):
            raise TensorError(f"the file has a quantizer {quantizer.path!r}, which NNCF has not put into the model")
        owner, _, name = path.rpartition(".")
        restored.get_submodule(owner)._modules[name] = quantizer.module(file)
    for path in paths.values():  # of layers whose weights are on a grid of ilwp
        owner, _, key = path.removesuffix(".op").rpartition(".")
        del restored.get_submodule(owner)[key]  # type: ignore[operator]
    own = restored.state_dict()
    restored.load_state_dict({**own, **{key: value for key, value in file.state_dict().items() if key in own}})
    return restored.eval()
