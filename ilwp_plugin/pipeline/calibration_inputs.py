"""Inputs to calibrate with, as people have them: tensors, batches, loaders, generators.

They are read once, into memory, and the model is seen to run with them before anything else is done. What is one batch
and what are many follows these rules:

- a tensor or a dict is one batch;
- a list, a loader, a generator or any other iterable holds batches; a data set holds examples;
- a batch that is a list or a tuple holds the arguments of one call, and a dict the named ones;
- a tuple is one batch (its entries are arguments) or holds batches, whichever the model runs with. Where it runs with
  both, the tuple is refused: `[(a, b)]` is one batch of two arguments, `[a, b]` are two batches.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

from ilwp_plugin.errors import CalibrationError
from ilwp_plugin.models.chains import call, evaluating, unwrap

__all__ = ["MOST_BYTES", "CalibrationInputs", "Pick", "device_of", "map_tensors", "read_inputs"]

MOST_BYTES = 4 << 30
"""Inputs that are read at most, in bytes."""

_TRIED = 2
"""Examples that the model is tried with: some models drop a dimension where there is only one."""

_TRIED_ENTRIES = 8
"""Of a batch that the model does not run with as a whole."""

_CONSTANTS = (type(None), bool, int, float, str)

Pick = Callable[[Any], Any]
"""What the model gets from a batch."""


@dataclass(frozen=True, eq=False)
class CalibrationInputs:
    """Examples that a model runs with. Made by `read_inputs`.

    Attributes:
        batch: all of them in one batch on the CPU: a tensor, a tuple of arguments or a dict of named ones. Examples are
            counted by the first dimension of every tensor.
        size: how many examples.
    """

    batch: Any
    size: int

    def part(self, start: int, stop: int, device: torch.device | None = None) -> Any:
        """A batch of some of the examples, on a device."""
        return map_tensors(lambda tensor: tensor[start:stop].to(device), self.batch)

    def split(self, every: int) -> tuple[CalibrationInputs, CalibrationInputs]:
        """All examples but some, and these: one of so many.

        Raises:
            CalibrationError: there are fewer.
        """
        if self.size < every:
            raise CalibrationError(f"calibration: {self.size} examples, of which one in {every} is to be held back")
        held = torch.arange(every - 1, self.size, every)
        mask = torch.ones(self.size, dtype=torch.bool)
        mask[held] = False
        parts = (mask, ~mask)
        first, second = (CalibrationInputs(map_tensors(lambda t, m=m: t[m], self.batch), int(m.sum())) for m in parts)
        return first, second

    def fingerprint(self) -> str:
        """Equal for equal examples, and for others practically never."""
        digest = hashlib.blake2b(digest_size=16)

        def add(tensor: Tensor) -> Tensor:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            return torch.empty(0)

        structure = map_tensors(add, self.batch)
        digest.update(repr(structure).encode())
        return digest.hexdigest()


def read_inputs(model: nn.Module, calibration: Any, pick: Pick | None = None) -> CalibrationInputs:
    """Read calibration inputs, see the rules above.

    Args:
        model: that is to be calibrated.
        calibration: inputs; those that were read already are returned as they are.
        pick: takes a batch and returns what the model is called with.

    Raises:
        CalibrationError: there are none, or too many, or the model does not run with them, or they hold NaN.
    """
    if isinstance(calibration, CalibrationInputs):
        return calibration
    reader = _Reader(unwrap(model), pick)
    batches = list(reader.read(calibration))
    if not batches:
        raise CalibrationError(
            "calibration: no inputs; a generator gives its batches only once, so make a new one for each call"
        )
    joined = _joined(batches)
    return CalibrationInputs(joined, _size(joined))


class _Reader:
    """Reads batches, and tries the first one."""

    def __init__(self, model: nn.Module, pick: Pick | None) -> None:
        self._model, self._pick, self._bytes = model, pick, 0

    def read(self, calibration: Any) -> Iterator[Any]:
        if isinstance(calibration, tuple):
            calibration = self._batches_of(calibration)
        elif isinstance(calibration, (Tensor, np.ndarray, Mapping)):
            calibration = [calibration]
        elif isinstance(calibration, Dataset):
            calibration = DataLoader(calibration, batch_size=64)
        elif not isinstance(calibration, Iterable) or isinstance(calibration, (str, bytes)):
            raise CalibrationError(
                f"calibration: expected a tensor, batches in a list, a DataLoader or a generator, got a "
                f"{type(calibration).__name__}"
            )
        for number, given in enumerate(calibration):
            batch = self._canonical(given)
            if number == 0 and (failure := self._failure(batch)) is not None:
                raise self._refusal(given, batch, failure) from failure
            map_tensors(self._check, batch)
            yield batch

    def _batches_of(self, given: tuple[Any, ...]) -> list[Any]:
        """A tuple as batches: itself, or its entries."""
        whole = self._outcome(given)
        if len(given) < 2 or not _alike(given):
            return [given]
        single = self._outcome(given[0])
        if single is not None and isinstance(given[0], Tensor) and self._outcome(given[0][None]) is None:
            return list(given)  # examples, which is what will be said
        if whole is None and single is None:
            raise CalibrationError(
                f"calibration: {type(self._model).__name__} runs with a tuple of {len(given)} both as arguments and as "
                "batches; write [(a, b)] for one batch of arguments, [a, b] for batches"
            )
        return list(given) if single is None else [given]

    def _outcome(self, given: Any) -> Exception | None:
        """What stands in the way of a batch, if anything."""
        try:
            return self._failure(self._canonical(given))
        except CalibrationError as error:
            return error

    def _canonical(self, given: Any) -> Any:
        """A batch as `CalibrationInputs` has it."""
        if self._pick is not None:
            try:
                given = self._pick(given)
            except Exception as error:  # the user's function can fail in any way
                raise CalibrationError(
                    f"`inputs` fails on {_described(given)} ({type(error).__name__}: {error}); it takes a batch of "
                    "`calibration` and returns what the model is called with"
                ) from error
        batch = _tensors(given)
        return tuple(batch) if isinstance(batch, list) else batch

    def _failure(self, batch: Any) -> Exception | None:
        """What the model raises on some examples of a batch, if anything."""
        try:
            size = _size(batch)
        except CalibrationError as error:
            return error
        if size == 0:
            return CalibrationError("the first batch holds no examples")
        device = device_of(self._model)
        try:
            with evaluating(self._model), torch.no_grad():
                call(self._model, map_tensors(lambda tensor: tensor[:_TRIED].to(device), batch))
        except Exception as error:  # the user's forward can fail in any way
            return error
        return None

    def _refusal(self, given: Any, batch: Any, failure: Exception) -> CalibrationError:
        """What the model does not run with, and what it would run with."""
        mend = "give batches of inputs as the model takes them, without labels"
        if self._pick is not None:
            mend = "`inputs` has to return what the model is called with: a tensor, a tuple or a dict of arguments"
        elif isinstance(batch, Tensor) and self._failure(batch[None]) is None:
            mend = "that is one example, and the model takes batches: torch.stack(examples) makes one"
        elif isinstance(batch, (tuple, dict)):
            found = self._picked(batch)
            picked = "(batch[0], ...)" if found is None else found
            mend = "it runs with a part of each batch" if found else "pick what it takes from each batch"
            mend = f"{mend}: compress(..., calibration=batches, inputs=lambda batch: {picked})"
        if isinstance(failure, CalibrationError):
            return CalibrationError(f"calibration: {failure}; {mend}")
        return CalibrationError(
            f"{type(self._model).__name__} does not run on the calibration inputs, {_described(given)} "
            f"({type(failure).__name__}: {' '.join(str(failure).split())}); {mend}"
        )

    def _picked(self, batch: tuple[Any, ...] | dict[Any, Any]) -> str | None:
        """A part of a batch that the model runs with, as an expression."""
        if isinstance(batch, tuple):
            for count in range(len(batch) - 1, 1, -1):
                if self._failure(batch[:count]) is None:
                    return f"batch[:{count}]"
        else:
            known = [key for key in batch if key in _parameters(self._model)]
            if known and self._failure({key: batch[key] for key in known}) is None:
                return "{" + ", ".join(f"{key!r}: batch[{key!r}]" for key in known) + "}"
        keys = list(range(len(batch)) if isinstance(batch, tuple) else batch)[:_TRIED_ENTRIES]
        return next((f"batch[{key!r}]" for key in keys if self._failure(batch[key]) is None), None)

    def _check(self, tensor: Tensor) -> Tensor:
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes > MOST_BYTES:
            raise CalibrationError(
                f"calibration: more than {MOST_BYTES >> 30} GiB of inputs, which are held in memory; some hundred "
                "examples do, some thousand are plenty: itertools.islice(loader, 20) takes the first batches"
            )
        if (tensor.is_floating_point() or tensor.is_complex()) and bool(tensor.isnan().any()):
            raise CalibrationError(
                f"calibration: NaN in {int(tensor.isnan().flatten(1).any(1).sum()) if tensor.dim() > 1 else 'some'} of "
                f"{len(tensor)} examples of a batch; leave them out, or mend what loads them"
            )
        return tensor


def _parameters(model: nn.Module) -> Collection[str]:
    """The names of the arguments that a model takes."""
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return ()


def device_of(model: nn.Module) -> torch.device:
    """The device that a model takes its inputs on: that of its first parameter or buffer.

    Raises:
        CalibrationError: some have no values: they are on the meta device, or of lazy layers.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise CalibrationError(f"tensor {name!r} belongs to a lazy layer that has not run yet; run the model once")
        if tensor.is_meta:
            raise CalibrationError(f"tensor {name!r} is on the meta device and has no values; load the weights first")
    return tensors[0][1].device if tensors else torch.device("cpu")


def map_tensors(function: Callable[..., Any], *batches: Any) -> Any:
    """Apply a function to the tensors of batches of one structure; everything else has to be equal in all of them."""
    first = batches[0]
    if isinstance(first, Tensor):
        return function(*batches)
    if isinstance(first, dict):
        if any(not isinstance(batch, dict) or batch.keys() != first.keys() for batch in batches):
            raise CalibrationError("calibration: the batches do not fit together: they have different keys")
        return {key: map_tensors(function, *(batch[key] for batch in batches)) for key in first}
    if isinstance(first, (tuple, list)):
        if any(not isinstance(batch, (tuple, list)) or len(batch) != len(first) for batch in batches):
            raise CalibrationError("calibration: the batches do not fit together: they have different lengths")
        return type(first)(map_tensors(function, *items) for items in zip(*batches, strict=True))
    if any(batch != first for batch in batches):
        raise CalibrationError(f"calibration: what is no tensor has to be equal in all batches, and {first!r} is not")
    return first


def _tensors(given: Any) -> Any:
    """Inputs with their tensors detached and on the CPU, arrays as tensors, containers as dict, tuple and list."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "biufc":
        given = torch.from_numpy(np.ascontiguousarray(given))
    if isinstance(given, Tensor):
        if given.is_meta or given.layout != torch.strided:
            raise CalibrationError("calibration: expected dense tensors, got one that is sparse or on the meta device")
        return given.detach().cpu()
    if isinstance(given, Mapping):
        return {key: _tensors(value) for key, value in given.items()}
    if isinstance(given, tuple):
        return tuple(_tensors(value) for value in given)
    if isinstance(given, list):
        return [_tensors(value) for value in given]
    if isinstance(given, _CONSTANTS):
        return given
    raise CalibrationError(f"calibration: expected tensors in lists, tuples or dicts, got a {type(given).__name__}")


def _alike(items: Iterable[Any]) -> bool:
    """Whether all could be batches of the same inputs."""

    def kind(item: Any) -> Any:
        if isinstance(item, (Tensor, np.ndarray)):
            return (str(item.dtype), *item.shape[1:])
        if isinstance(item, Mapping):
            return {key: kind(value) for key, value in item.items()}
        return [kind(value) for value in item] if isinstance(item, (tuple, list)) else type(item)

    first, *others = map(kind, items)
    return all(other == first for other in others)


def _joined(batches: list[Any]) -> Any:
    def join(*tensors: Tensor) -> Tensor:
        shapes = {(tensor.shape[1:], tensor.dtype) for tensor in tensors}
        if len(shapes) > 1:
            found = " and ".join(sorted(f"{tuple(shape)} {dtype}" for shape, dtype in shapes)[:2])
            mend = "give all examples one size"
            if len({(len(shape), dtype) for shape, dtype in shapes}) > 1:
                mend = "a list holds batches: [(x, y)] is one batch of two arguments"
            raise CalibrationError(f"calibration: the batches do not fit together: examples are {found}; {mend}")
        return torch.cat(tensors)

    return map_tensors(join, *batches)


def _size(batch: Any) -> int:
    sizes: set[int] = set()
    map_tensors(lambda tensor: sizes.add(len(tensor) if tensor.dim() else -1), batch)
    if not sizes:
        raise CalibrationError("a batch holds no tensor")
    if len(sizes) != 1 or -1 in sizes:
        raise CalibrationError("every input needs the number of examples as its first dimension")
    return sizes.pop()


def _described(given: Any) -> str:
    """What a batch is, in words."""
    if isinstance(given, (Tensor, np.ndarray)):
        return f"a tensor of shape {tuple(given.shape)}"
    if isinstance(given, Mapping):
        return f"a dict with {', '.join(map(repr, list(given)[:5]))}"
    return f"a {type(given).__name__}" + (f" of {len(given)}" if isinstance(given, (tuple, list)) else "")
