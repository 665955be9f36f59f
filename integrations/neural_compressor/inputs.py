"""What INC calls example inputs, in every form in which people have them; and what a model was called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from ilwp_plugin.errors import CalibrationError, ConfigError
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, device_of, read_inputs

__all__ = ["ENOUGH", "MOST", "Examples", "Recorder", "arguments_of", "read_examples"]

ENOUGH = 32
"""Examples that calibrate: with fewer the file fits these alone, and the model gets worse."""

MOST = 2048
"""Examples that are taken of a loader, and of what a model is called with; more change next to nothing."""

_TRACED = 2


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs of a model.

    Attributes:
        batch: for one forward pass: a tensor, a tuple of arguments or a dict of named ones; None where there are none.
        calibration: all of them, where each holds examples in its first dimension.
    """

    batch: Any = None
    calibration: CalibrationInputs | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Examples:
        return self  # INC copies the model that holds them


def read_examples(model: nn.Module, given: Any) -> Examples:
    """Read example inputs.

    Args:
        model: takes them.
        given: a tensor, a tuple or a list of arguments, a dict of named ones, batches of these in a list, a DataLoader,
            a data set or another iterable, with labels or without; or what was read already.

    Raises:
        CalibrationError: batches of an iterable do not fit the model, or hold NaN.
    """
    if given is None or isinstance(given, Examples):
        return given or Examples()
    if isinstance(given, CalibrationInputs):
        return Examples(given.part(0, _TRACED, device_of(model)), given)
    if not isinstance(given, (Tensor, tuple, list, Mapping)):
        return read_examples(model, _read_batches(model, given))
    readings = [given, [tuple(given)]] if isinstance(given, list) else [[given] if isinstance(given, tuple) else given]
    for reading in readings:
        try:
            return read_examples(model, read_inputs(model, reading))
        except CalibrationError:
            pass
    return Examples(given)  # still good for a forward pass, whose own error says what is wrong with it


def _read_batches(model: nn.Module, given: Any) -> CalibrationInputs:
    if isinstance(given, Dataset):
        given = DataLoader(given, batch_size=64)
    if not isinstance(given, Iterable):
        raise CalibrationError(
            f"example_inputs: expected a tensor, arguments in a tuple or a dict, or batches of these, got a "
            f"{type(given).__name__}"
        )
    batches = list(_first(given))
    try:
        return read_inputs(model, batches)
    except CalibrationError as error:
        if not all(isinstance(batch, (tuple, list)) and len(batch) > 1 for batch in batches):
            raise
        try:  # INC's own loaders yield inputs and labels
            return read_inputs(model, [batch[0] for batch in batches])
        except CalibrationError:
            raise error from None


def _first(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches with MOST examples together."""
    count = 0
    for batch in batches:
        yield batch
        count += _size(batch)
        if count >= MOST:
            return


def _size(batch: Any) -> int:
    return next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), 1)


class Recorder:
    """Remembers what a model is called with in eval mode, as long as it is little; a forward pre-hook.

    INC's users calibrate by running the prepared model, in `run_fn` or between `prepare` and `convert`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.batches: list[Any] = []
        self._count = 0
        self._handle = unwrap(model).register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if module.training or self._count >= MOST:
            return
        if named and arguments:
            batch: Any = dict(inspect.signature(module.forward).bind(*arguments, **named).arguments)
        else:
            batch = named or (arguments[0] if len(arguments) == 1 else arguments)
        self.batches.append(batch)
        self._count += _size(batch)

    def stop(self, model: nn.Module) -> Examples:
        """What was seen; nothing where it is of no use."""
        self._handle.remove()
        batches, self.batches = self.batches, []
        try:
            return read_examples(model, read_inputs(model, batches)) if batches else Examples()
        except CalibrationError:  # of shapes that do not go together, for example
            return Examples()


def arguments_of(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """A batch as positional arguments, which an export wants.

    Raises:
        ConfigError: named ones that are no arguments of the model.
    """
    if not isinstance(batch, Mapping):
        return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    try:
        bound = inspect.signature(unwrap(model).forward).bind(**batch)
    except TypeError as error:
        raise ConfigError(f"example_inputs: {type(model).__name__}: {error}") from None
    if bound.kwargs:
        bound.apply_defaults()  # of what comes before them
    if bound.kwargs:
        raise ConfigError(
            f"example_inputs: {sorted(bound.kwargs)} of {type(model).__name__} can be given by name only, which an "
            "exported model does not take"
        )
    return bound.args
