"""Steps chosen by the data that a config has for its initialization."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import CalibrationError
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, read_inputs
from ilwp_plugin.training.session import warn_of_equal_steps

__all__ = ["calibration_of", "inputs_of"]


def calibration_of(
    model: nn.Module, config: IlwpConfig, loader: Iterable[Any] | None, samples: int
) -> CalibrationInputs | None:
    """The first inputs of the registered data, by which a `Session` chooses its steps.

    Args:
        model: the model.
        config: of the session.
        loader: the registered data, as NNCF 2 takes them.
        samples: how many inputs are taken; of the last batch all of them.

    Returns:
        None where there are no data, where no recipe would choose steps by them, and where the model does not run with
        them, of which a warning tells.
    """
    allocations = [getattr(recipe.options, "step_allocation", None) for recipe in config.recipe_list()]
    if loader is None or not samples or not {"auto", "measured"}.intersection(allocations):
        return None
    try:
        taken = list(_first(loader, samples))
        return read_inputs(model, taken) if taken else None
    except CalibrationError as error:
        warn_of_equal_steps(error)
        return None


def inputs_of(loader: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What a model is called with, by position and by name, for each batch of data that are registered as in NNCF 2."""
    for batch in loader:
        if hasattr(loader, "get_inputs"):
            arguments, named = loader.get_inputs(batch)
            yield tuple(arguments), dict(named)
        else:
            yield (batch[0] if isinstance(batch, (tuple, list)) else batch,), {}


def _first(loader: Any, samples: int) -> Iterator[Any]:
    """The inputs of the model, batch by batch: a tuple of arguments, or a dict of named ones."""
    count = 0
    for arguments, named in inputs_of(loader):
        if arguments and named:
            raise CalibrationError("arguments by position and by name at once")
        yield arguments or named
        values = (*arguments, *named.values())
        count += max((len(value) for value in values if isinstance(value, Tensor) and value.dim()), default=1)
        if count >= samples:
            return
