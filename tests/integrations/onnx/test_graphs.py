"""Every kind of layer, every place of a tensor, operator sets from 11 on: through a file and back."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ilwp_integrations.onnx import compress_model, load_session, restore_model
from ilwp_integrations.onnx.tensors import dtype_in_file, values_of
from onnx import ModelProto, TensorProto, helper

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format import pack
from ilwp_plugin.format.sections.graph import GraphSection
from tests.integrations.onnx.graphs import GRAPHS, build, convolution, random


def run(model: ModelProto | bytes, inputs: Any) -> np.ndarray:
    content = model.SerializeToString() if isinstance(model, ModelProto) else model
    result: np.ndarray = onnxruntime.InferenceSession(content).run(None, inputs)[0]
    return result


@pytest.mark.parametrize("preset", ["small", "lossless"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_file_gives_a_valid_model_that_computes_the_same_as_the_session(name: str, preset: str) -> None:
    model, inputs = GRAPHS[name]()
    onnx.checker.check_model(model)
    content = compress_model(model, preset).to_bytes()
    restored = restore_model(content)
    onnx.checker.check_model(restored, full_check=True)
    found, expected = run(restored, inputs), run(model, inputs)
    np.testing.assert_array_equal(load_session(content).run(None, inputs)[0], found)
    if preset == "lossless":
        np.testing.assert_array_equal(found, expected)
    else:
        assert np.square(found - expected).sum() < 1e-3 * np.square(expected).sum()


@pytest.mark.parametrize("name", GRAPHS)
def test_every_weight_is_on_the_grid_and_all_else_is_named(name: str) -> None:
    compressed = compress_model(GRAPHS[name]()[0])
    weights = {layer.name for layer in compressed.layers if layer.kind in ("chain", "grid")}
    others = {key for key in compressed.state_dict() if key.endswith(".weight")} - weights
    assert not {key for key in others if not {key, key.rpartition(".")[0]} & set(compressed.left)}
    real = {info.name for info in compressed.tensors if info.dtype in ("float32", "float16", "bfloat16")}
    assert real <= weights | set(compressed.left) | {f"{name}.weight" for name in compressed.left}
    named = {"a_table_that_is_no_weight": {"table": "a constant of an operation without weights"}}
    if name in named:
        assert compressed.left == named[name]


@pytest.mark.parametrize(
    ("kernel", "groups", "transposed"), [((3,), 1, False), ((3, 3), 4, False), ((3, 3), 4, True), ((2, 2, 2), 1, True)]
)
def test_batch_norms_are_folded(kernel: tuple[int, ...], groups: int, transposed: bool) -> None:
    model, inputs = convolution(kernel, 17, groups=groups, transposed=transposed)
    folded = restore_model(compress_model(model, {"weight_step": 1e-3}).to_bytes())
    assert [node.op_type for node in folded.graph.node] == [model.graph.node[0].op_type]
    assert {tensor.name for tensor in folded.graph.initializer} == {"w", "b"}
    np.testing.assert_allclose(run(folded, inputs), run(model, inputs), atol=0.05)
    kept = restore_model(compress_model(model, "lossless").to_bytes())
    assert [node.op_type for node in kept.graph.node] == [node.op_type for node in model.graph.node]


def test_what_shares_a_tensor_is_not_folded() -> None:
    model, inputs = convolution((3, 3), 17)
    model.graph.node.append(helper.make_node("Identity", ["c"], ["seen"]))
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, [2, 8, 5, 5]))
    restored = restore_model(compress_model(model).to_bytes())
    assert [node.op_type for node in restored.graph.node] == ["Conv", "BatchNormalization", "Identity"]
    assert np.square(run(restored, inputs) - run(model, inputs)).mean() < 0.01


def test_depthwise_layers_form_a_chain_in_the_order_of_execution() -> None:
    compressed = compress_model(GRAPHS["depthwise"]()[0])
    assert [chain.names for chain in compressed.chains] == [["w0.weight", "w1.weight", "w2.weight"]]


def test_a_target_counts_the_graph() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], doc_string="".join(map(str, random(300))))]
    model, _ = build(nodes, {"x": random(4, 64)}, {"y": [4, 64]}, {"w": random(64, 64)})
    whole = compress_model(model).ledger.file_bytes
    assert whole - 500 < compress_model(model, target_bytes=whole - 300).ledger.file_bytes <= whole - 300


def test_values_in_every_field(tmp_path: Path) -> None:
    """Raw data, or a list for the type; numpy_helper is the reference."""
    for kind in (v.number for v in TensorProto.DataType.DESCRIPTOR.values):
        name = TensorProto.DataType.Name(kind)
        if dtype_in_file(kind) is None:
            assert name in ("UNDEFINED", "STRING") or name.startswith("FLOAT6")
            continue
        numbers = np.array([0, 1, 1, 0, 1, 1]) if name in ("BOOL", "FLOAT8E8M0") else np.array([1, 0, 1, 1, 0, 1])
        listed = helper.make_tensor("t", kind, [6], numbers)
        raw = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(listed), "t")
        assert not listed.HasField("raw_data") and raw.HasField("raw_data")
        assert values_of(listed).tobytes() == values_of(raw).tobytes() == raw.raw_data, name


def test_a_model_of_more_than_one_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = GRAPHS["embedding"]()
    compress_model(model, "lossless").save(tmp_path / "m.ilwp")
    monkeypatch.setattr("ilwp_integrations.onnx.files._LARGEST", 1000)
    restore_model(tmp_path / "m.ilwp", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size >= 30 * 16 * 4
    found = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, inputs)[0]
    np.testing.assert_array_equal(found, run(model, inputs))


def test_a_graph_that_does_not_fit_its_tensors_is_refused() -> None:
    compressed = compress_model(GRAPHS["embedding"]()[0], "lossless")
    sections = [
        GraphSection(s.kind, s.content.replace(b"ilwp:table", b"ilwp:tabel")) if isinstance(s, GraphSection) else s
        for s in compressed.sections
    ]
    content = b"".join(pack(compressed.tensors, sections))
    for reader in (load_session, restore_model):
        with pytest.raises(FormatError, match="'tabel.weight'"):
            reader(content)


@pytest.mark.parametrize("where", ["initializer", "constant", "branch"])
def test_no_other_file_is_read(where: str) -> None:
    """Whoever sends a file must not get another one of the device into the model."""
    model, _ = GRAPHS["branches"]()
    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="secret.bin")
    if where == "initializer":
        model.graph.initializer.append(outside)
    elif where == "constant":
        model.graph.node.append(helper.make_node("Constant", [], ["outside"], value=outside))
    else:
        model.graph.node[0].attribute[0].g.initializer.append(outside)
    compressed = compress_model(GRAPHS["branches"]()[0], "lossless")
    sections = [s for s in compressed.sections if not isinstance(s, GraphSection)]
    content = b"".join(pack(compressed.tensors, [*sections, GraphSection("onnx", model.SerializeToString())]))
    for reader in (load_session, restore_model):
        with pytest.raises(FormatError, match=r"a file of its own, 'secret\.bin'"):
            reader(content)
