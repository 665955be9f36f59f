"""What is compared: networks x seeds x methods, expanded into tasks that have names which do not depend on the grid."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ilwp_plugin import strict_json
from ilwp_plugin.compare.methods import find_method
from ilwp_plugin.demo import DemoSettings, preset
from ilwp_plugin.errors import ConfigError, IlwpError, nearest
from ilwp_plugin.validation import config_error

__all__ = ["CompareConfig", "Entry", "Network", "Task"]

LARGEST = 1e18
"""More than any number of a comparison, and small enough to be computed with."""


def _moderate(weight: float) -> float:
    """Neither so small nor so large that a figure could not show it."""
    if weight and not 1e-18 <= weight <= LARGEST:
        raise ValueError(f"expected 0, or a number from 1e-18 to {LARGEST:g}")
    return weight


LossWeight = (
    Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), AfterValidator(_moderate)] | Literal["auto"]
)
Positive = Annotated[int, Field(strict=True, ge=1, lt=1 << 63)]
Width = Annotated[float, Field(strict=True, gt=0, le=LARGEST, allow_inf_nan=False)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Model):
    """A network and how it is trained; what is null is what the data set's preset says (see `ilwp demo`)."""

    model: str | None = None
    width: Width | None = None
    stem_stride: Positive | None = None
    epochs: Positive | None = None
    batch: Positive | None = None


class Entry(_Model):
    """A line of the grid: one method, on networks trained without or with the inter-layer loss."""

    method: str = Field(description="Name of a method, or TOOLKIT.NAME.")
    loss_weight: tuple[LossWeight, ...] = Field(
        default=(0,), description="Weights of the inter-layer loss in the training before: 0 is without, 'auto'."
    )
    models: tuple[str, ...] | None = Field(default=None, description="Networks that it is for; null is all of them.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the method.")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="Options of which each value is tried with each of the others."
    )

    def choices(self) -> Iterator[dict[str, Any]]:
        """The options of each cell of the grid."""
        for values in itertools.product(*self.grid.values()):
            yield {**self.options, **dict(zip(self.grid, values, strict=True))}


class Network(_Model):
    """A trained network: everything that its weights depend on, but for the versions of libraries."""

    data: str
    model: str
    width: Width
    stem_stride: Positive
    epochs: Positive
    batch: Positive
    seed: Seed
    loss_weight: LossWeight

    @property
    def settings(self) -> DemoSettings:
        """As `demo.initial_model` wants it."""
        values = self.model_dump(exclude={"loss_weight"})
        return DemoSettings(**values)

    @property
    def key(self) -> str:
        """The same for the same network, in any comparison."""
        return _digest(self.model_dump(mode="json"))

    @property
    def name(self) -> str:
        """For tables: without the seed."""
        return f"{self.model} x{self.width:g}, {self.data}"


class Task(_Model):
    """One piece of work: to train a network (no method), or to compress it by a method and measure what comes out."""

    network: Network
    method: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for the same task, in any comparison."""
        return _digest(self.model_dump(mode="json"))

    @property
    def title(self) -> str:
        """For progress and errors."""
        loss = "" if self.network.loss_weight == 0 else f", loss weight {self.network.loss_weight}"
        what = "training" if self.method is None else f"{self.method} {json.dumps(self.options)}"
        return f"{self.network.name}, seed {self.network.seed}{loss}: {what}"


class CompareConfig(_Model):
    """The grid of a comparison. Unknown keys are refused.

    >>> config = CompareConfig.from_dict({"data": ["digits"], "methods": [{"method": "fp32"}]})
    >>> [task.method for task in config.tasks()]
    [None, 'fp32']
    """

    data: tuple[str, ...] = Field(default=("digits",), min_length=1, description="Data sets.")
    networks: tuple[Architecture, ...] = Field(default=(Architecture(),), min_length=1, description="Networks.")
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, description="Of weights and batches.")
    methods: tuple[Entry, ...] = Field(min_length=1, description="What is compared.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompareConfig:
        """Validated, the options of every method included.

        Raises:
            ConfigError: a field, a method's name or its options are wrong; the message has the path.
            MissingDependencyError: a method needs a toolkit that is not installed; the message names the extra.
        """
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise config_error(error, cls) from None
        asked = {preset(data, model=a.model).model for data in config.data for a in config.networks}
        for number, entry in enumerate(config.methods):
            for name in entry.models or ():
                if name not in asked:
                    raise ConfigError(f"methods.{number}.models: no network is a {name!r}; {nearest(name, asked)}")
            method = find_method(entry.method)
            for options in entry.choices():
                try:
                    method.options.from_dict(options)
                except IlwpError as error:
                    raise ConfigError(f"methods.{number} ({entry.method}): {error}") from None
        return config

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> CompareConfig:
        """From a JSON file. Raises FileError, and what `from_dict` raises."""
        values = strict_json.load(path)
        if not isinstance(values, dict):
            raise ConfigError(f"{os.fspath(path)}: expected an object, got {values!r}")
        return cls.from_dict(values)

    def tasks(self) -> list[Task]:
        """All tasks, each once: architecture by architecture, its trainings first, which the others need."""
        found: dict[str, Task] = {}
        for data, architecture in itertools.product(self.data, self.networks):
            trainings, methods = {}, {}
            for seed in self.seeds:
                settings = preset(data, seed=seed, **architecture.model_dump())
                base = {name: getattr(settings, name) for name in Network.model_fields if name != "loss_weight"}
                for entry in self.methods:
                    if entry.models is not None and settings.model not in entry.models:
                        continue
                    accept = find_method(entry.method).options.from_dict
                    for loss_weight in entry.loss_weight:
                        network = Network(**base, loss_weight=loss_weight)
                        task = Task(network=network)
                        trainings[task.key] = task
                        for choice in entry.choices():
                            options = accept(choice).changes
                            task = Task(network=network, method=entry.method, options=options)
                            methods[task.key] = task
            found = {**found, **trainings, **methods}
        return list(found.values())


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=12).hexdigest()
