"""From a controller of NNCF 2.19, of whatever algorithms, to the `.ilwp` file."""

from __future__ import annotations

import os
from typing import Any

import nncf
from nncf.torch.compression_method_api import PTCompressionAlgorithmController
from torch import nn

from ilwp_plugin import CompressedModel
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.training import Session

from ..saving import file_of, is_stripped
from .algorithm import stripped_of

__all__ = ["compressed", "estimate_ilwp", "save_ilwp"]


def session_of(controller: PTCompressionAlgorithmController) -> Session | None:
    """That of the config's section of ours, if it has one."""
    parts = getattr(controller, "child_ctrls", [controller])
    return next((part.session for part in parts if hasattr(part, "session")), None)


def compressed(controller: PTCompressionAlgorithmController, **fields: Any) -> CompressedModel:
    """The stripped model as the file holds it.

    Args:
        controller: what `create_compressed_model` returned.
        fields: of IlwpConfig, where the config has no section of ours or one that quantizes nothing.
    """
    model = stripped(controller)
    return file_of(stripped_of(model), session_of(controller), fields)


def stripped(controller: PTCompressionAlgorithmController) -> nn.Module:
    """A stripped copy of the controller's model; the model itself where it has been stripped in place."""
    model: nn.Module = controller.model
    if is_stripped(model):
        return model
    try:
        copied: Any = controller.strip(do_copy=True)
    except nncf.InternalError as error:
        raise TrainingError(f"NNCF cannot strip this model, and the file holds stripped ones: {error}") from error
    copied.nncf._kd_loss_handler = None  # the teacher of knowledge distillation
    return copied  # type: ignore[no-any-return]


def save_ilwp(controller: PTCompressionAlgorithmController, path: str | os.PathLike[str], **fields: Any) -> Ledger:
    """Write the `.ilwp` file of the stripped model, which `load(path).apply_to(stripped)` restores exactly.

    Raises:
        TrainingError: the model does not compute with quantized residuals yet.
    """
    session = session_of(controller)
    if session is not None:
        session.check_quantizes()
    return compressed(controller, **fields).save(path)


def estimate_ilwp(controller: PTCompressionAlgorithmController, **fields: Any) -> Ledger:
    """The exact sizes of the file that `save_ilwp` would write now."""
    return compressed(controller, **fields).ledger
