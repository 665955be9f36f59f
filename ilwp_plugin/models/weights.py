"""State dicts in the files that other tools write: .safetensors, and those of torch.save, read weights-only."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ilwp_plugin.errors import FileError, IlwpError, IlwpWarning, TensorError
from ilwp_plugin.format.container import write_file
from ilwp_plugin.models.network import FileState
from ilwp_plugin.models.tensor_files import REMEDY, StandIn, load_tensors
from ilwp_plugin.paths import check_regular

__all__ = ["read_state_dict", "write_safetensors"]


def read_state_dict(path: str | os.PathLike[str], key: str | None = None, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read a state dict, from whatever `torch.save` or safetensors have written, under any name.

    In a checkpoint that holds more it is looked for: the one mapping of names to tensors, at most three levels deep, in
    which a tensor of floating-point numbers has a dimension. An IlwpWarning says where it was and what else is in the
    file; among several `key` chooses.

    A .safetensors file does not keep the order of its tensors; they come in natural order of their names ("2" before
    "10"), which is the order of execution in most networks. Give `layers` in the configuration where it is not.

    Args:
        path: the file.
        key: where the state dict is inside a checkpoint; levels are joined by dots. It may go on with what names begin
            with: of a state dict that holds moving averages beside the network it takes one.
        mapped: leave the tensors in the file where they can be, and say that nobody changes them: `compress` then takes
            no copies. The file must not be written to while they live. Those of .safetensors always are in the file.

    Raises:
        FileError: the file cannot be read, or is not of its format.
        TensorError: it holds no state dict, or several and no `key` was given.
    """
    path = Path(path)
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix.casefold() == ".safetensors" or start[8:] == b"{":
        tensors = _safetensors(path)
        if key is not None:
            raise TensorError(f"{path}: no key {key!r}; a .safetensors file holds one state dict")
        ordered = sorted(tensors.items(), key=lambda item: _natural(item[0]))
        return FileState(ordered) if mapped else dict(ordered)
    try:
        content = load_tensors(path, mapped=mapped, stand_in=True)
    except IlwpError:
        raise
    except ValueError as error:
        raise FileError(f"{path}: no state dict can be read: {error}") from error
    found = _state_dict(content, path, key)
    return FileState(found) if mapped else found


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # the reader raises what it meets in a damaged file
        reason = str(error).strip().splitlines()
        raise FileError(f"{path}: no .safetensors file ({reason[0] if reason else type(error).__name__})") from error


_LEVELS = 3
"""So deep inside a checkpoint a state dict is looked for."""

_NUMBER = "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"


def _state_dict(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    if isinstance(content, StandIn):
        raise TensorError(f"{path}: holds a whole object of {content.kind}, which only its class can read; {REMEDY}")
    if not isinstance(content, Mapping):
        raise TensorError(f"{path}: holds a {type(content).__name__}, and no state dict (tensors by name); {REMEDY}")
    found = dict(_candidates(content))
    if key is None and len(found) > 1:
        raise TensorError(f"{path}: holds {len(found)} state dicts, choose one by key (--key): {_listed(found)}")
    if key is None and not found:
        what = ", ".join(f"{name!r} ({_kind(value)})" for name, value in list(content.items())[:5]) or "nothing"
        raise TensorError(f"{path}: holds no state dict (tensors by name), but {what}; {REMEDY}")
    if key is not None and key not in found:
        inner = _under(found, key)
        if inner is None:
            raise TensorError(f"{path}: no state dict under the key {key!r}; {_listed(found) or 'none elsewhere'}")
        return inner
    ((place, state),) = found.items() if key is None else [(key, found[key])]
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in state.items() if name not in tensors}
    for name, value in others.items():
        if isinstance(value, StandIn) and value.kind not in _NUMBER:
            raise TensorError(
                f"{path}: {name!r} among the tensors is an object of {value.kind}, which only its class can read; "
                f"{REMEDY}"
            )
    if key is None and place:
        others |= {name: value for name, value in content.items() if name != place.partition(".")[0]}
    if others or (key is None and place):
        where = f"the state dict under {place!r} is taken" if place else f"{len(tensors)} tensors are taken"
        left = ", ".join(f"{name!r} ({_kind(value)})" for name, value in list(others.items())[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        warnings.warn(f"{path}: {where}" + (f", not {left}{more}" if left else ""), IlwpWarning, stacklevel=3)
    if copies := _copies(tensors):
        keys = [f"{place}.{name}" if place else name for name in copies]
        warnings.warn(
            f"{path}: the same names and shapes under each of {', '.join(map(repr, copies))}; all are taken, where "
            f"--key {keys[0]} takes the first",
            IlwpWarning,
            stacklevel=3,
        )
    return tensors


def _under(found: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Tensor] | None:
    """The tensors whose names in one of these state dicts begin with the rest of a key, without it."""
    for place, state in found.items():
        if not place or key.startswith(f"{place}."):
            prefix = f"{key[len(place) + 1 :] if place else key}."
            inner = {
                n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix) and isinstance(t, Tensor)
            }
            if inner:
                return inner
    return None


_COPIED = 8
"""Tensors of a network, from which on two that are alike are taken for copies: moving averages, or a teacher."""


def _copies(tensors: Mapping[str, Tensor]) -> list[str]:
    """First parts of names under which the same names and shapes stand as under the first of them."""
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = tensor.shape
    large = {name: own for name, own in parts.items() if len(own) >= _COPIED}
    alike = [name for name, own in large.items() if own == next(iter(large.values()))]
    return alike if len(alike) > 1 else []


def _candidates(content: Mapping[Any, Any], place: str = "", level: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """State dicts by where they are. Numbers of an optimizer's parameters are no names."""
    if not all(isinstance(name, str) for name in content):
        return
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    if tensors and (
        (len(tensors) == len(content) and not place) or any(t.is_floating_point() and t.dim() for t in tensors)
    ):
        yield place, content
    if level < _LEVELS:
        for name, value in content.items():
            if isinstance(value, Mapping):
                yield from _candidates(value, f"{place}.{name}" if place else name, level + 1)


def _listed(found: Mapping[str, Mapping[str, Any]]) -> str:
    shown = [f"{place!r} ({len(state)} tensors)" for place, state in found.items()]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")


def _kind(value: Any) -> str:
    stands_in = isinstance(value, StandIn) or (isinstance(value, type) and issubclass(value, StandIn))
    return str(value.kind) if stands_in else type(value).__name__


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers inside names by value."""
    return [
        (0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part
    ]


def write_safetensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict as .safetensors, atomically; the format knows no sharing: each tensor is written in full.

    Raises:
        FileError: the file cannot be written, or the format lacks a dtype.
    """
    separate = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    try:
        data = safetensors.torch.save(separate)
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileError(f"{os.fspath(path)}: a .safetensors file cannot hold these tensors: {error}") from error
    write_file(path, [data])
