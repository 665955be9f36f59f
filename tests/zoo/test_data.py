import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ilwp_plugin.errors import DataError, RegistryError
from ilwp_plugin.zoo import load_data


def test_digits() -> None:
    data = load_data("digits")
    assert data.train_images.shape == (1437, 1, 16, 16) and data.test_images.shape == (360, 1, 16, 16)
    assert data.classes == 10 and data.channels == 1
    assert abs(float(data.train_images.mean())) < 1e-3 and float(data.train_images.std()) == pytest.approx(1, abs=1e-3)
    assert torch.bincount(data.test_labels).min() >= 34
    with pytest.raises(DataError, match="takes no folder"):
        load_data("digits", "/tmp")


def write_idx(path: Path, values: np.ndarray, packed: bool) -> None:  # type: ignore[type-arg]
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    if packed:
        content = gzip.compress(content)
        path = path.with_name(path.name + ".gz")
    path.write_bytes(content)


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist(tmp_path: Path, packed: bool) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), packed)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10, packed)
    data = load_data("fashion-mnist", tmp_path)
    assert data.train_images.shape == (20, 1, 32, 32) and data.test_labels.tolist() == list(range(10))
    assert torch.equal(data.train_images[0, 0, 0], data.train_images[1, 0, 31]), "the padding is even"


def test_fashion_mnist_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file .*train-images-idx3-ubyte; install Debian's package"):
        load_data("fashion-mnist", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"abc")
    with pytest.raises(DataError, match="not an idx file"):
        load_data("fashion-mnist", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 28, 28) + bytes(7))
    with pytest.raises(DataError, match="7 values, its header says"):
        load_data("fashion-mnist", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot read"):
        load_data("fashion-mnist", tmp_path)
    damaged = bytearray(gzip.compress(bytes(1000)))
    damaged[12] ^= 255
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damaged)
    with pytest.raises(DataError, match="cannot read"):
        load_data("fashion-mnist", tmp_path)


def test_images_without_labels(tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", np.zeros((5, 28, 28), np.uint8), False)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.zeros(4, np.uint8), False)
    with pytest.raises(DataError, match="5 training images and 4 labels"):
        load_data("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "archive", "files", "prefix"),
    [
        ("cifar-10", "cifar-10-batches-bin", [*[f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"], b""),
        ("cifar-100", "cifar-100-binary", ["train.bin", "test.bin"], b"\x63"),
    ],
)
def test_cifar(tmp_path: Path, name: str, archive: str, files: list[str], prefix: bytes) -> None:
    with pytest.raises(DataError, match=f"{name}: no folder given; give the folder"):
        load_data(name)
    with pytest.raises(DataError, match=f"{name}: no file .*{files[0]}"):
        load_data(name, tmp_path)
    for file in files:
        records = [prefix + bytes([label]) + bytes([label * 3] * 3072) for label in range(10)]
        (tmp_path / file).write_bytes(b"".join(records))
    data = load_data(name, tmp_path)
    assert data.train_images.shape == (10 * (len(files) - 1), 3, 32, 32)
    assert data.test_labels.tolist() == list(range(10))
    unpacked = tmp_path / "unpacked" / archive
    unpacked.mkdir(parents=True)
    for file in files:
        (unpacked / file).write_bytes((tmp_path / file).read_bytes())
    assert torch.equal(load_data(name, tmp_path / "unpacked").train_images, data.train_images)
    (tmp_path / files[0]).write_bytes(bytes(100))
    with pytest.raises(DataError, match="100 bytes, expected a multiple of"):
        load_data(name, tmp_path)


def test_unknown_data() -> None:
    with pytest.raises(RegistryError, match="did you mean 'digits'"):
        load_data("digit")
