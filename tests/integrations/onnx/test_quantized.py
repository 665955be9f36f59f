"""Models that toolkits have quantized: not one value changes, whatever the configuration."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import zstandard
from ilwp_integrations.onnx import compress_model, load_session, restore_model
from ilwp_integrations.onnx.tensors import values_of
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import nn

from tests.integrations.onnx.graphs import build, random
from tests.integrations.onnx.test_calibration import export


class Reader(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self.batches: Iterator[np.ndarray] = iter(images[:, None])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random(4, 3, 16, 16)


@pytest.fixture(scope="module")
def source(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 144, 10),
    ).eval()
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    onnx.save(export(net, torch.from_numpy(images[:1]), True), path)
    return path


def static(source: Path, path: Path, images: np.ndarray, kind: QuantFormat, **options: object) -> Path:
    quantize_static(str(source), str(path), Reader(images), quant_format=kind, weight_type=QuantType.QInt8, **options)
    return path


def nncf(source: Path, path: Path, images: np.ndarray) -> Path:
    import nncf

    data = nncf.Dataset(images[:, None], lambda batch: {"x": batch})
    onnx.save(nncf.quantize(onnx.load(source), data, subset_size=len(images)), path)
    return path


MAKERS = {
    "qdq": lambda s, p, x: static(s, p, x, QuantFormat.QDQ, per_channel=True),
    "qoperator": lambda s, p, x: static(s, p, x, QuantFormat.QOperator, per_channel=True),
    "per tensor": lambda s, p, x: static(s, p, x, QuantFormat.QDQ),
    "float weights": lambda s, p, x: static(
        s, p, x, QuantFormat.QDQ, per_channel=True, extra_options={"AddQDQPairToWeight": True}
    ),
    "dynamic": lambda s, p, x: quantize_dynamic(str(s), str(p), weight_type=QuantType.QInt8),
    "nncf": nncf,
}


@pytest.mark.parametrize("preset", ["lossless", "small"])
@pytest.mark.parametrize("name", MAKERS)
def test_no_value_changes(name: str, preset: str, source: Path, images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "quantized.onnx"
    MAKERS[name](source, path, images)
    compressed = compress_model(path, preset)
    content = compressed.to_bytes()
    session = onnxruntime.InferenceSession(path.read_bytes())
    for image in images[:, None]:
        given = {"x": image}
        assert session.run(None, given)[0].tobytes() == load_session(content).run(None, given)[0].tobytes()
    before = {t.name: values_of(t) for t in onnx.load(path).graph.initializer}
    after = {t.name: values_of(t) for t in restore_model(content).graph.initializer}
    shared = [key for key in before if key in after]
    assert all(before[key].tobytes() == after[key].tobytes() for key in shared)
    assert {key for key, values in before.items() if values.dtype.kind in "iu" and values.size > 8} <= set(shared)
    codes = [info for info in compressed.tensors if info.dtype in ("int8", "uint8")]
    assert sum(info.numel for info in codes) > 90_000, "nothing of it stays in full precision"
    assert not [key for key, why in compressed.left.items() if compressed.tensor(key).numel() > 100], compressed.left
    if preset == "lossless":
        zstd = zstandard.ZstdCompressor(level=19).compress(path.read_bytes())
        assert len(content) < len(zstd) < len(path.read_bytes())


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_codes_are_those_of_the_runtime(kind: int, axis: int | None) -> None:
    """Halves are rounded to even, what is too large is cut."""
    weight = random(24, 16) * 3
    weight[:2] = np.arange(32).reshape(2, 16) / 2 - 4.25
    scale = np.array(0.5, np.float32) if axis is None else np.abs(random([24, 16][axis])) / 20 + 0.002
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    values = {"w": weight, "scale": scale.astype(np.float32), "point": np.full(scale.shape, 3, dtype)}
    options = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "scale", "point"], ["q"], **options),
        helper.make_node("DequantizeLinear", ["q", "scale", "point"], ["d"], **options),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model, inputs = build(nodes, {"x": np.eye(24, dtype=np.float32)}, {"y": [24, 16]}, values, 22)
    content = compress_model(model).to_bytes()
    restored: ModelProto = restore_model(content)
    assert [node.op_type for node in restored.graph.node] == ["DequantizeLinear", "MatMul"]
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    assert load_session(content).run(None, inputs)[0].tobytes() == expected.tobytes()
    model.graph.output.append(helper.make_tensor_value_info("q", kind, [24, 16]))
    codes = onnxruntime.InferenceSession(model.SerializeToString()).run(["q"], inputs)[0]
    found = next(numpy_helper.to_array(t) for t in restored.graph.initializer if t.name == "q")
    np.testing.assert_array_equal(found, codes)
