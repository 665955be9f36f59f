"""Image data for classification: digits (inside scikit-learn), Fashion-MNIST and CIFAR from files."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilwp_plugin._imports import optional
from ilwp_plugin.errors import DataError
from ilwp_plugin.registry import Registry

__all__ = ["DATASETS", "Dataset", "load_data"]

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package of that name puts it


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in memory.

    Attributes:
        name: as registered.
        train_images, test_images: (n, channels, height, width) float32, normalised by the training set's mean and
            standard deviation of each channel.
        train_labels, test_labels: (n,) int64.
        classes: how many.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    @property
    def channels(self) -> int:
        """Of an image."""
        return int(self.train_images.shape[1])


Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]
"""Training images (n, channels, height, width), labels, test images, labels."""

DATASETS: Registry[Callable[[Path | None], Arrays]] = Registry("data set")
"""Readers of data sets by name; each gets the folder of the files, or None for the usual one."""


def load_data(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set of the registry.

    Args:
        name: digits, fashion-mnist, cifar-10 or cifar-100.
        folder: where its files are; digits needs none, fashion-mnist has a default. For CIFAR the folder in which the
            archive of the binary version was unpacked does, too.

    Raises:
        DataError: the files are missing, or are not what they should be; the message says how to get them.
    """
    x, y, x_test, y_test = DATASETS[name](None if folder is None else Path(folder))
    for part, images, labels in (("training", x, y), ("test", x_test, y_test)):
        if len(images) != len(labels) or len(images) == 0:
            raise DataError(f"{name}: {len(images)} {part} images and {len(labels)} labels")
    train = torch.from_numpy(x).float()
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    return Dataset(
        name=name,
        train_images=train.sub_(mean).div_(std),
        train_labels=torch.from_numpy(y),
        test_images=torch.from_numpy(x_test).float().sub_(mean).div_(std),
        test_labels=torch.from_numpy(y_test),
        classes=int(y.max()) + 1,
    )


@DATASETS.register("digits")
def _digits(folder: Path | None) -> Arrays:
    """1,797 handwritten digits of 8x8 pixels, doubled to 16x16; a fifth of each class is for testing."""
    if folder is not None:
        raise DataError(f"digits comes inside scikit-learn and takes no folder, got {folder}")
    bunch = optional("sklearn.datasets", "report").load_digits()
    images = (bunch.images * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)[:, None]
    labels = bunch.target.astype(np.int64)
    split = optional("sklearn.model_selection", "report").train_test_split
    x, x_test, y, y_test = split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    return x, y, x_test, y_test


def _missing(name: str, path: Path, how: str) -> DataError:
    return DataError(f"{name}: no file {path}; {how}")


def _read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes, or its .gz."""
    try:
        if path.exists():
            data = path.read_bytes()
        else:
            with gzip.open(path.with_name(path.name + ".gz")) as file:
                data = file.read()
    except FileNotFoundError:
        raise _missing(
            "fashion-mnist",
            path,
            "install Debian's package dataset-fashion-mnist, or give the folder that holds the four idx files "
            "(train-images-idx3-ubyte and so on, with or without .gz)",
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"fashion-mnist: cannot read {path}: {error}") from error
    header = 4 + 4 * rank
    if len(data) < header or data[:4] != bytes([0, 0, 8, rank]):
        raise DataError(f"{path}: not an idx file of bytes with {rank} dimensions")
    shape = struct.unpack(f">{rank}I", data[4:header])
    values = np.frombuffer(data, dtype=np.uint8, offset=header)
    if values.size != int(np.prod(shape)):
        raise DataError(f"{path}: {values.size} values, its header says {shape}")
    return values.reshape(shape)


@DATASETS.register("fashion-mnist")
def _fashion_mnist(folder: Path | None) -> Arrays:
    """60,000 and 10,000 images of 28x28 pixels, padded to 32x32."""
    folder = folder or FASHION_FOLDER
    parts: list[NDArray[np.uint8]] = []
    for part in ("train", "t10k"):
        images = _read_idx(folder / f"{part}-images-idx3-ubyte", 3)
        parts += [
            np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None],
            _read_idx(folder / f"{part}-labels-idx1-ubyte", 1),
        ]
    return parts[0], parts[1].astype(np.int64), parts[2], parts[3].astype(np.int64)


def _read_cifar(
    name: str, folder: Path | None, archive: str, files: list[str], label_bytes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """From a folder that has the files, or that has a folder `archive`, which is what they are unpacked as."""
    how = f"give the folder of the data set's binary version, which holds {', '.join(files)}"
    if folder is None:
        raise DataError(f"{name}: no folder given; {how}")
    folder = folder / archive if (folder / archive).is_dir() else folder
    record = label_bytes + 3072
    rows = []
    for file in files:
        path = folder / file
        if not path.is_file():
            raise _missing(name, path, how)
        try:
            data = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise DataError(f"{name}: cannot read {path}: {error}") from error
        if data.size == 0 or data.size % record:
            raise DataError(f"{path}: {data.size} bytes, expected a multiple of {record}")
        rows.append(data.reshape(-1, record))
    table = np.concatenate(rows)
    return table[:, label_bytes:].reshape(-1, 3, 32, 32), table[:, label_bytes - 1].astype(np.int64)


@DATASETS.register("cifar-10")
def _cifar_10(folder: Path | None) -> Arrays:
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    x, x_test = (
        _read_cifar("cifar-10", folder, "cifar-10-batches-bin", files, 1) for files in (train, ["test_batch.bin"])
    )
    return *x, *x_test


@DATASETS.register("cifar-100")
def _cifar_100(folder: Path | None) -> Arrays:
    x, x_test = (_read_cifar("cifar-100", folder, "cifar-100-binary", [f"{part}.bin"], 2) for part in ("train", "test"))
    return *x, *x_test
