"""Models that save themselves as an `.ilwp` file and come back from it, in the manner of huggingface_hub's mixins.

Folders on this machine are enough: nothing here reaches a network, and huggingface_hub need not be installed.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ilwp_plugin import strict_json
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError, FileError
from ilwp_plugin.format.container import write_file
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.pipeline.compress import compress
from ilwp_plugin.pipeline.file import load

__all__ = ["CONFIG", "WEIGHTS", "IlwpModelMixin"]

WEIGHTS = "model.ilwp"
"""The file of the tensors, in the folder."""

CONFIG = "config.json"
"""The file of the arguments that the class was made with."""

M = TypeVar("M", bound="IlwpModelMixin")


class IlwpModelMixin:
    """Gives a module `save_pretrained` and `from_pretrained`.

    The arguments of `__init__` are kept, as far as they are JSON, so that `from_pretrained` can make the module again.

    >>> class Net(nn.Module, IlwpModelMixin):
    ...     def __init__(self, width: int = 8) -> None:
    ...         super().__init__()
    ...         self.head = nn.Linear(width, width)
    >>> Net(width=16).init_arguments
    {'width': 16}
    """

    init_arguments: dict[str, Any]

    def __new__(cls: type[M], *arguments: Any, **named: Any) -> M:
        """The module, with its arguments by name; a parameter `*args` cannot be kept."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *arguments, **named)
        except TypeError:  # a copy, which gets its attributes later; or a wrong call, of which `__init__` tells
            return self
        bound.apply_defaults()
        values = dict(list(bound.arguments.items())[1:])
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                values.update(values.pop(name, {}))
        object.__setattr__(self, "init_arguments", values)
        return self

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        config: IlwpConfig | Mapping[str, Any] | str | None = None,
        **options: Any,
    ) -> Ledger:
        """Compress the module into a folder.

        Args:
            folder: where `model.ilwp` and `config.json` are written; is made if need be.
            config: see `ilwp_plugin.compress`.
            options: likewise, `calibration=` for example.

        Returns:
            The ledger of `model.ilwp`.

        Raises:
            ConfigError: an argument of `__init__` is no JSON; or see `ilwp_plugin.compress`.
            FileError: the folder cannot be written.
        """
        assert isinstance(self, nn.Module), "a mixin of modules"
        try:
            text = json.dumps(self.init_arguments, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{type(self).__name__} was made with an argument that is no JSON: {error}; make the model yourself, "
                "use compress(model).save(path) and load(path).apply_to(model)"
            ) from None
        compressed = compress(self, config, **options)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the folder {os.fspath(folder)}: {error.strerror or error}") from error
        write_file(Path(folder) / CONFIG, [text.encode() + b"\n"])
        return compressed.save(Path(folder) / WEIGHTS)

    @classmethod
    def from_pretrained(
        cls: type[M], folder: str | os.PathLike[str], *, max_bytes: int | None = None, **changes: Any
    ) -> M:
        """The module of a folder, in eval mode.

        Args:
            folder: what `save_pretrained` has written.
            max_bytes: see `ilwp_plugin.load`.
            changes: arguments of `__init__`, instead of those in `config.json`.

        Raises:
            FileError: a file is missing or cannot be read.
            ConfigError: `config.json` is not JSON, or names arguments that the class does not take.
            FormatError, TensorError: `model.ilwp` is damaged, or does not fit the class.
        """
        values = strict_json.load(Path(folder) / CONFIG)
        if not isinstance(values, dict):
            raise ConfigError(f"{Path(folder) / CONFIG}: expected an object, got {type(values).__name__}")
        values = {**values, **changes}
        try:
            inspect.signature(cls).bind(**values)
        except TypeError as error:
            raise ConfigError(f"{Path(folder) / CONFIG}: {cls.__name__}: {error}") from None
        made: Any = cls(**values)  # a module, too
        load(Path(folder) / WEIGHTS, max_bytes=max_bytes).restore(made)
        made.eval()
        return made  # type: ignore[no-any-return]
