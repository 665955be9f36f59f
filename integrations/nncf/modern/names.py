"""The names of NNCF 2 that training scripts import, for NNCF 3, which has them no more."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin.errors import TensorError

from .accuracy_aware import AdaptiveLoop, EarlyExitLoop, create_accuracy_aware_training_loop
from .config import NNCFConfig, register_default_init_args
from .controller import CompressionStage
from .creation import create_compressed_model

__all__ = ["InitArgs", "InitializingDataLoader", "add_names", "load_state"]


class InitializingDataLoader:
    """NNCF 2's `PTInitializingDataLoader`: says what of a batch the model gets. Override `get_inputs`.

    Args:
        data_loader: yields batches.
    """

    def __init__(self, data_loader: Iterable[Any]) -> None:
        self.data_loader = data_loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data_loader)

    def get_inputs(self, dataloader_output: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the model."""
        first = dataloader_output[0] if isinstance(dataloader_output, (tuple, list)) else dataloader_output
        return (first,), {}

    def get_target(self, dataloader_output: Any) -> Any:
        """The labels; not used here."""
        return dataloader_output[1]


class InitArgs:
    """NNCF 2's `QuantizationRangeInitArgs` and `BNAdaptationInitArgs`: data for `NNCFConfig.register_extra_structs`.

    Args:
        data_loader: yields batches.
        device: not used.
    """

    def __init__(self, data_loader: Iterable[Any], device: Any = None) -> None:
        self.data_loader = data_loader


def load_state(
    model: nn.Module,
    state_dict_to_load: Mapping[str, Tensor],
    is_resume: bool = False,
    keys_to_ignore: Iterable[str] | None = None,
) -> int:
    """Load what of a state dict fits a model; prefixes of wrappers are looked through.

    Args:
        model: the model.
        state_dict_to_load: of this model, of a wrapped one, or of the one before compression.
        is_resume: whether everything has to fit.
        keys_to_ignore: names that are passed over.

    Returns:
        How many tensors have been loaded.

    Raises:
        TensorError: something does not fit, and `is_resume` is True.
    """
    ignored = set(keys_to_ignore or ())
    own = model.state_dict()
    wrappers = ("module.", "_orig_mod.")
    given: dict[str, Tensor] = {}
    for name, tensor in state_dict_to_load.items():
        plain = name
        while plain not in own and plain.startswith(wrappers):
            plain = plain.partition(".")[2]
        if plain not in ignored and name not in ignored:
            given[plain] = tensor
    fitting = {name: t for name, t in given.items() if name in own and own[name].shape == t.shape}
    missing = [name for name in own if name not in fitting and name not in ignored]
    unexpected = [name for name in given if name not in fitting]
    if is_resume and (missing or unexpected):
        raise TensorError(
            f"the state dict does not fit {type(model).__name__}: missing {missing[:3] or 'nothing'}, unexpected or of "
            f"another shape {unexpected[:3] or 'nothing'}"
        )
    with torch.no_grad():
        model.load_state_dict({**own, **fitting})
    return len(fitting)


_MODULES: dict[str, dict[str, Any]] = {
    "nncf": {"NNCFConfig": NNCFConfig},
    "nncf.api": {},
    "nncf.api.compression": {"CompressionStage": CompressionStage},
    "nncf.common.accuracy_aware_training": {
        "create_accuracy_aware_training_loop": create_accuracy_aware_training_loop,
    },
    "nncf.config": {"NNCFConfig": NNCFConfig},
    "nncf.config.structures": {"BNAdaptationInitArgs": InitArgs, "QuantizationRangeInitArgs": InitArgs},
    "nncf.torch": {
        "AdaptiveCompressionTrainingLoop": AdaptiveLoop,
        "EarlyExitCompressionTrainingLoop": EarlyExitLoop,
        "create_compressed_model": create_compressed_model,
        "load_state": load_state,
        "register_default_init_args": register_default_init_args,
    },
    "nncf.torch.checkpoint_loading": {"load_state": load_state},
    "nncf.torch.initialization": {
        "PTInitializingDataLoader": InitializingDataLoader,
        "register_default_init_args": register_default_init_args,
    },
}


def add_names() -> None:
    """Add them where NNCF 3 has none of that name."""
    for path, names in _MODULES.items():
        module = sys.modules.get(path)
        if module is None and find_spec(path) is None:
            module = sys.modules[path] = ModuleType(path, "Of NNCF 2, for scripts that import it.")
            module.__path__ = []  # others are inside
            module.__spec__ = ModuleSpec(path, None, is_package=True)
            parent, _, name = path.rpartition(".")
            setattr(sys.modules[parent], name, module)
        if module is None:
            continue
        for name, value in names.items():
            if not hasattr(module, name):
                setattr(module, name, value)
