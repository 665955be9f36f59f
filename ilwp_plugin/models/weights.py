"""State dicts in the files that other tools write: .safetensors, and .pt / .pth read weights-only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ilwp_plugin.errors import FileError, TensorError
from ilwp_plugin.format.container import write_file
from ilwp_plugin.models.tensor_files import check_regular, load_tensors

__all__ = ["read_state_dict", "write_safetensors"]


def read_state_dict(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict.

    A .safetensors file does not keep the order of its tensors; they come in natural order of their names ("2" before
    "10"), which is the order of execution in most networks. Give `layers` in the configuration where it is not.

    Args:
        path: a .safetensors, .pt or .pth file.
        key: where the state dict is inside a checkpoint that holds more.

    Raises:
        FileError: the file cannot be read, or is not of its format.
        TensorError: it holds something else than a state dict.
    """
    path = Path(path)
    if path.suffix not in {".safetensors", ".pt", ".pth"}:
        raise FileError(f"{path}: unknown kind of file {path.suffix!r}; expected .safetensors, .pt or .pth")
    check_regular(path)
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
            return dict(sorted(tensors.items(), key=lambda item: _natural(item[0])))
        content = load_tensors(path)
    except FileError:
        raise
    except Exception as error:  # the reader of .safetensors raises what it meets in a damaged file
        reason = str(error).strip().splitlines()
        raise FileError(
            f"{path}: not a {path.suffix} file of tensors only ({reason[0] if reason else type(error).__name__}); "
            "where the model can be made, torch.save(model.state_dict(), 'weights.pt') writes one"
        ) from error
    return _state_dict(content, path, key)


def _state_dict(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    found = {name: value for name, value in content.items() if _is_state_dict(value)} if _is_dict(content) else {}
    if key is not None:
        if key not in found:
            raise TensorError(
                f"{path}: no state dict under the key {key!r}; those are: {sorted(map(str, found)) or 'none'}"
            )
        return dict(found[key])
    if _is_state_dict(content):
        return dict(content)
    hint = f"choose one of its state dicts by key: {sorted(map(str, found))}" if found else "it holds no state dict"
    raise TensorError(f"{path}: not a state dict but a {type(content).__name__} with other things in it; {hint}")


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_state_dict(value: Any) -> bool:
    return _is_dict(value) and len(value) > 0 and all(isinstance(item, Tensor) for item in value.values())


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
