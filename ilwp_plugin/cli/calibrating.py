"""Calibration inputs on the command line: an .npz file, a folder of images, or a function of the user's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import CalibrationError, ConfigError, FileError, MissingDependencyError, nearest

__all__ = ["PIXELS", "function_of", "images_of", "inputs_of"]

_Scale = tuple[Sequence[float], Sequence[float]]

PIXELS: dict[str, _Scale] = {
    "0..1": ((0.0,), (255.0,)),
    "-1..1": ((127.5,), (127.5,)),
    "0..255": ((0.0,), (1.0,)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
"""How pixels of 0 to 255 become what a model takes: less a mean, over a deviation. `imagenet` is torchvision's."""

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


def inputs_of(source: str, shapes: Mapping[str, Sequence[int | str]], pixels: str | None, size: int | None) -> Any:
    """What `compress` takes as `calibration`.

    Args:
        source: what the user has given.
        shapes: of the model's inputs by name, see `Network.input_shapes`.
        pixels: one of `PIXELS`, for images.
        size: of images, where the model takes any.

    Raises:
        FileError, CalibrationError, ConfigError: it cannot be read, or tells not enough.
    """
    path = Path(source)
    if path.is_dir():
        return images_of(path, shapes, pixels, size)
    if path.suffix.casefold() in (".npz", ".npy") or path.is_file():
        return _arrays(path)
    if ":" in source:
        return function_of(source, "--calibration")()
    raise FileError(f"--calibration {source}: no such file or folder, and no module:function")


def _arrays(path: Path) -> Any:
    try:
        content = np.load(path, allow_pickle=False)
        found = {name: content[name] for name in content.files} if hasattr(content, "files") else {"": content}
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # what is no zip file, or holds objects
        raise FileError(f"{path}: no .npz file of plain arrays ({error})") from error
    if not found:
        raise CalibrationError(f"{path}: holds no array")
    return next(iter(found.values())) if len(found) == 1 else found


def function_of(source: str, option: str) -> Callable[..., Any]:
    """A function that the user names as module:function; the folder that the command runs in is looked through first.

    Raises:
        ConfigError: there is none.
    """
    place, _, name = source.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(place), name)
    except ImportError as error:
        raise ConfigError(f"{option} {source}: cannot import {place}: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"{option} {source}: {place} has no {name!r}") from error
    if not callable(found):
        raise ConfigError(f"{option} {source}: {name} is no function")
    function: Callable[..., Any] = found
    return function


def images_of(
    folder: Path, shapes: Mapping[str, Sequence[int | str]], pixels: str | None, size: int | None
) -> NDArray[np.float32]:
    """All images of a folder, in the order of their names: scaled so that their shorter side fits, the middle cut out.

    Returns:
        (images, channels, height, width), or (images, height, width, channels) where the model takes that.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError(
            f"--calibration {folder}: reading images needs Pillow: pip install pillow"
        ) from error
    if pixels not in PIXELS:
        known = ", ".join(PIXELS)
        what = "say how pixels become what the model takes" if pixels is None else nearest(pixels, PIXELS)
        raise ConfigError(f"--pixels: {what}: one of {known}")
    height, width, channels, last = _layout(shapes, size)
    mean, deviation = (np.array(values, np.float32) for values in PIXELS[pixels])
    if channels == 1:
        mean, deviation = mean.mean(keepdims=True), deviation.mean(keepdims=True)
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.casefold() not in _IMAGES:
            continue
        try:
            with Image.open(path) as image:
                picture = image.convert("L" if channels == 1 else "RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise FileError(f"cannot read {path}: {error}") from error
        factor = max(width / picture.width, height / picture.height)
        scaled = (max(width, round(picture.width * factor)), max(height, round(picture.height * factor)))
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        cut = picture.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
        values = np.asarray(cut, np.float32).reshape(height, width, channels)
        found.append((values - mean) / deviation)
    if not found:
        raise CalibrationError(f"{folder}: holds no image ({', '.join(sorted(_IMAGES))})")
    images = np.stack(found).astype(np.float32)
    return images if last else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _layout(shapes: Mapping[str, Sequence[int | str]], size: int | None) -> tuple[int, int, int, bool]:
    """Height, width and channels of images, and whether the channels come last."""
    if len(shapes) > 1:
        raise ConfigError(
            f"--calibration: a folder of images is for models with one input, this one has {', '.join(shapes)}; give "
            "an .npz file with an array for each, or module:function"
        )
    shape = list(next(iter(shapes.values()), ["?", 3, "?", "?"]))
    if len(shape) != 4:
        raise ConfigError(f"--calibration: the model takes {shape}, which is no batch of images")
    last = shape[1] not in (1, 3) and shape[3] in (1, 3)
    channels = shape[3] if last else shape[1]
    if not isinstance(channels, int) or channels not in (1, 3):
        raise ConfigError(f"--calibration: the model takes {shape}; images have 1 or 3 channels")
    sides = [side if isinstance(side, int) and side > 0 else size for side in (shape[1:3] if last else shape[2:])]
    height, width = sides
    if height is None or width is None:
        raise ConfigError(f"--size: the model takes images of any size ({shape}); say which: --size 224")
    return int(height), int(width), channels, last
