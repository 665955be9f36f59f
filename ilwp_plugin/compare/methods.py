"""A method of a comparison: a trained network in, a file and a way back out.

Methods of the core are in the registry `METHODS`; those of a toolkit are called TOOLKIT.NAME and offered by its
integration, in a function `methods()` that returns them by NAME.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from ilwp_plugin import toolkits
from ilwp_plugin.demo import DemoSettings, initial_model
from ilwp_plugin.errors import RegistryError, nearest
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.pipeline.file import CompressedModel, load
from ilwp_plugin.registry import Registry
from ilwp_plugin.validation import config_error
from ilwp_plugin.zoo import Dataset

__all__ = [
    "METHODS",
    "Case",
    "Compressed",
    "Method",
    "Options",
    "find_method",
    "tensor_bytes",
    "wiped",
]

M = TypeVar("M", bound=nn.Module)


class Options(BaseModel):
    """What a method can be told. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Options:
        """Raises ConfigError, with the path of the field."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise config_error(error, cls) from None

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True)
class Case:
    """A trained network, as a method gets it.

    Attributes:
        settings: what was trained.
        data: on what.
        state: the trained weights.
        folder: a folder of the task's own, for checkpoints; it is there.
        device: where what can be trained elsewhere than on the CPU is trained.
    """

    settings: DemoSettings
    data: Dataset
    state: Mapping[str, Tensor]
    folder: Path
    device: str = "cpu"

    def fresh(self) -> nn.Module:
        """The network as its class makes it, in eval mode."""
        return initial_model(self.settings, self.data).eval()

    def model(self) -> nn.Module:
        """The trained network, in eval mode; a new copy each time."""
        model = self.fresh()
        model.load_state_dict(self.state)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def calibration(self, images: int) -> Tensor:
        """So many training images, (n, channels, height, width); the same ones for every method and seed."""
        order = torch.randperm(len(self.data.train_images), generator=torch.Generator().manual_seed(0))
        return self.data.train_images[order[:images]]


@dataclass(frozen=True)
class Compressed:
    """What a method has made.

    Attributes:
        raw_bytes: the whole model as the tool computes with it, without entropy coding: integer weights in the bits of
            their codes, their scales, every other tensor as it is.
        raw_depthwise_bytes: the same, of the weights of depthwise layers, or of those that stand for them, see
            `zoo.scope_layers`.
        save: writes the file; returns its ledger where it is an `.ilwp` file, else None.
        restore: makes the model from the file. Nothing that is measured may come from elsewhere.
    """

    raw_bytes: int
    raw_depthwise_bytes: int
    save: Callable[[Path], Ledger | None]
    restore: Callable[[Path], nn.Module]

    @classmethod
    def of(cls, compressed: CompressedModel, structure: nn.Module, raw: tuple[int, int]) -> Compressed:
        """Of a compressed model that is restored into a structure, whose own weights and buffers are wiped first.

        Args:
            compressed: the file.
            structure: a module that the file fits.
            raw: bytes as the tool computes with them: of all tensors, and of the depthwise layers.
        """

        def restore(path: Path) -> nn.Module:
            model = wiped(copy.deepcopy(structure))
            load(path).apply_to(model)
            return model.eval()

        return cls(*raw, compressed.save, restore)


class Method(ABC):
    """A way to compress a network; made without arguments.

    Attributes:
        group: whose method it is, for tables: baseline, ilwp, or the name of a toolkit.
        options: what it can be told; a class with `from_dict` and `changes`, like `Options`.
        packages: names of distributions whose versions matter.
    """

    group: ClassVar[str]
    options: ClassVar[Any] = Options
    packages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def title(self, options: Any) -> str:
        """A short name for tables, with the options that matter."""

    def check(self, options: Any) -> None:  # noqa: B027  (most methods need nothing)
        """Look for what the method needs besides, before anything is trained; raises IlwpError where it is not."""

    @abstractmethod
    def compress(self, case: Case, options: Any) -> Compressed:
        """Compress `case.model()`; training is part of it, where a method needs some."""


METHODS: Registry[type[Method]] = Registry("method")
"""Methods by the name that a comparison gives them."""


def find_method(name: str) -> Method:
    """A method by its name.

    Raises:
        RegistryError: there is none of that name.
        MissingDependencyError: the toolkit is not installed; the message names the extra.
    """
    toolkit, _, rest = name.rpartition(".")
    if not toolkit:
        return METHODS[name]()
    offered: Callable[[], Mapping[str, Method]] | None = getattr(toolkits.load(toolkit), "methods", None)
    if offered is None:
        raise RegistryError(f"integration {toolkit!r} offers no methods to compare")
    found = offered()
    if rest not in found:
        raise RegistryError(f"unknown method {name!r}; {nearest(rest, found)}")
    return found[rest]


def wiped(model: M) -> M:
    """The model with every parameter and buffer 0, so that what it computes can only come from a file."""
    for tensor in model.state_dict().values():
        tensor.zero_()
    return model


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all the values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
