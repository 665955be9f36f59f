"""ONNX models: in, out, and straight into a session."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ilwp_integrations.onnx import compress_model, load_session, restore_model
from ilwp_integrations.onnx.protobuf import placeholders
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from ilwp_plugin import CompressedModel, compress
from ilwp_plugin.errors import FileError, FormatError
from ilwp_plugin.testing.contract import settle
from ilwp_plugin.zoo import build_model


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    return torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network(example: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    return settle(build_model("mobilenet", width=0.25, in_channels=1, stem_stride=2), example)


@pytest.fixture(scope="module")
def model(network: nn.Module, example: torch.Tensor) -> ModelProto:
    buffer = io.BytesIO()
    torch.onnx.export(network, (example,), buffer, dynamo=False)
    return onnx.load_from_string(buffer.getvalue())


def outputs(session: onnxruntime.InferenceSession, example: torch.Tensor) -> np.ndarray:
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: example.numpy()})[0]
    return result


def test_a_session_computes_what_the_restored_model_computes(model: ModelProto, example: torch.Tensor) -> None:
    before = model.SerializeToString()
    compressed = compress_model(model)
    assert model.SerializeToString() == before, "the model is not changed"
    content = compressed.to_bytes()
    restored = restore_model(content)
    onnx.checker.check_model(restored)
    direct = outputs(load_session(content), example)
    np.testing.assert_array_equal(direct, outputs(onnxruntime.InferenceSession(restored.SerializeToString()), example))
    assert len(content) < 0.3 * len(before)


def test_depthwise_layers_are_chained_and_all_others_on_the_grid(model: ModelProto, network: nn.Module) -> None:
    compressed = compress_model(model)
    assert [len(chain.layers) for chain in compressed.chains] == [13]
    assert len(compressed.quantized) >= 15 and not compressed.left
    plain = compress(network).ledger.file_bytes
    assert compressed.ledger.file_bytes < 1.05 * plain, "the graph takes little"


def test_lossless_changes_no_value(model: ModelProto) -> None:
    restored = restore_model(compress_model(model, "lossless").to_bytes())
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for tensor in restored.graph.initializer:
        if tensor.name in before:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), before[tensor.name])


def small(weight: np.ndarray, *, name: str = "w", constant: bool = False) -> ModelProto:
    node = helper.make_node("MatMul", ["x", name], ["y"])
    tensor = numpy_helper.from_array(weight, name)
    nodes = [helper.make_node("Constant", [], [name], value=tensor), node] if constant else [node]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, len(weight)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, weight.shape[1]])],
        [] if constant else [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", ["w", "onnx::MatMul_7", "a..b", "/layer/w.weight"])
def test_any_name_and_constants(name: str, constant: bool) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)
    compressed = compress_model(small(weight, name=name, constant=constant))
    assert isinstance(compressed, CompressedModel) and len(compressed.quantized) == 1
    session = load_session(compressed.to_bytes())
    y = session.run(None, {"x": np.ones((1, 16), np.float32)})[0]
    np.testing.assert_allclose(y[0], weight.sum(axis=0), atol=0.3)


def test_files(model: ModelProto, tmp_path: Path) -> None:
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    compress_model(tmp_path / "m.onnx").save(tmp_path / "m.ilwp")
    restore_model(tmp_path / "m.ilwp", tmp_path / "back.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "back.onnx"))
    with pytest.raises(FileError, match="No such file"):
        compress_model(tmp_path / "absent.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(FileError, match="no ONNX model that can be read"):
        compress_model(tmp_path / "junk.onnx")
    compress(build_model("mobilenet", width=0.25), "paper").save(tmp_path / "tensors.ilwp")
    with pytest.raises(FormatError, match="holds no ONNX model"):
        load_session(tmp_path / "tensors.ilwp")


def test_a_session_needs_neither_torch_nor_onnx(model: ModelProto, tmp_path: Path) -> None:
    compress_model(model).save(tmp_path / "m.ilwp")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'pydantic', 'scipy'): sys.modules[name] = None\n"
        "from ilwp_integrations.onnx import load_session\n"
        "import numpy as np\n"
        "session = load_session(sys.argv[1])\n"
        "print(session.run(None, {session.get_inputs()[0].name: np.ones((4, 1, 32, 32), np.float32)})[0].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.ilwp")], capture_output=True, text=True)
    assert done.stdout.strip() == "(4, 10)", done.stderr


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_graph_that_is_cut_off_is_refused(model: ModelProto, cut: int) -> None:
    with pytest.raises(FormatError, match="cut off|no protobuf"):
        placeholders(model.SerializeToString()[:-cut])
