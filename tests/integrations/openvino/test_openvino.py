"""OpenVINO models in IR: in, out, and into a core from memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ilwp_integrations.openvino import compress_model, open_model, read_model, restore_model
from torch import Tensor, nn

from ilwp_plugin import compress
from ilwp_plugin.errors import FileError, FormatError
from ilwp_plugin.format.sections.graph import GraphSection

ov = pytest.importorskip("openvino")

Ir = tuple[bytes, bytes]


class Net(nn.Module):
    """Depthwise layers that resemble each other, a transposed convolution, a recurrent layer, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        self.depthwise = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, groups=32) for _ in range(3))
        self.up, self.recurrent = nn.ConvTranspose2d(32, 8, 2), nn.LSTM(8, 16, batch_first=True)
        self.words, self.fc = nn.Embedding(10, 16), nn.Linear(16, 10)
        with torch.no_grad():
            for layer in self.depthwise[1:]:
                layer.weight.copy_(self.depthwise[0].weight + 0.003 * torch.randn_like(layer.weight))

    def forward(self, x: Tensor, word: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.depthwise:
            x = x + layer(x)
        sequence = self.up(x).flatten(2).transpose(1, 2)[:, :12]
        return self.fc(self.recurrent(sequence)[0][:, -1] + self.words(word))


IMAGE, WORD = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32), np.array([3])


@pytest.fixture(scope="module")
def converted() -> Any:
    example = torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.long)
    return ov.convert_model(Net().eval(), example_input=example)


@pytest.fixture(scope="module", params=[False, True], ids=["fp32", "fp16"])
def path(request: pytest.FixtureRequest, converted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ir") / "model.xml"
    ov.save_model(converted, out, compress_to_fp16=request.param)
    return out


def contents(path: Path) -> Ir:
    return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def outputs(model: Any) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = ov.compile_model(model, "CPU")([IMAGE, WORD])[0]
    return result


def test_lossless_brings_both_files_back_bit_for_bit(path: Path, tmp_path: Path) -> None:
    compressed = compress_model(path, "lossless")
    compressed.save(tmp_path / "model.ilwp")
    xml, weights = restore_model(tmp_path / "model.ilwp", tmp_path / "back.xml")
    assert (xml, weights) == contents(path) == contents(tmp_path / "back.xml")
    assert len(compressed.to_bytes()) < len(xml) + len(weights)


def test_the_default_is_small_and_runs_from_memory(path: Path) -> None:
    compressed = compress_model(path)
    data = compressed.to_bytes()
    assert len(data) < 0.4 * sum(map(len, contents(path)))
    layers = {layer.name: layer for layer in compressed.layers}
    chained = [layer.details["mode"] for layer in compressed.layers if layer.kind == "chain"]
    assert chained == ["none", "collocated", "collocated"]
    assert not compressed.left and {"grid", "chain", "graph"} >= {layer.kind for layer in layers.values()} - {"floats"}
    restored = read_model(data)
    before, after = outputs(ov.Core().read_model(path)), outputs(restored)
    assert 0 < np.abs(after - before).max() < 0.05 * np.abs(before).max()
    by_hand = restore_model(data)
    assert np.array_equal(
        outputs(ov.Core().read_model(by_hand[0].decode(), ov.Tensor(np.frombuffer(by_hand[1], "u1")))), after
    )


def test_models_in_memory_are_compressed_as_their_files(converted: Any, tmp_path: Path) -> None:
    ov.serialize(converted, tmp_path / "model.xml")
    files = contents(tmp_path / "model.xml")
    assert compress_model(converted).to_bytes() == compress_model(files).to_bytes()
    with pytest.raises(FileError, match="expected an .xml file"):
        compress_model(3)


def test_constants_at_one_place_are_one_tensor(path: Path) -> None:
    """OpenVINO writes equal constants once."""
    xml, weights = contents(path)
    name = next(layer for layer in open_model((xml, weights)).state)
    first = xml.index(b'type="Const"')
    end = xml.index(b"</layer>", first) + len(b"</layer>")
    start = xml.rindex(b"<layer", 0, first)
    twin = xml[start:end].replace(b'<layer id="', b'<layer id="9', 1).replace(b'name="', b'name="twin of ', 1)
    both = xml[:end] + twin + xml[end:]
    assert name in open_model((both, weights)).state
    data = compress((network := open_model((both, weights))), "lossless").to_bytes()
    assert restore_model(data) == (both, weights) and len(network.state) == len(open_model((xml, weights)).state)


def test_packed_and_small_constants_come_back() -> None:
    """Of 4 bits, of booleans, of strings, and of scalars."""
    constants = (
        ("four", "u4", "300", 3, 150),
        ("yes", "boolean", "80", 153, 80),
        ("words", "string", "9", 233, 90),
        ("one", "i64", "", 323, 8),
        ("over", "u8", "200", 100, 200),
    )
    layers = "".join(
        f'<layer id="{number}" name="{name}" type="Const" version="opset1">'
        f'<data element_type="{kind}" shape="{shape}" offset="{offset}" size="{size}"/></layer>'
        for number, (name, kind, shape, offset, size) in enumerate(constants)
    )
    xml = f'<?xml version="1.0"?><net name="n" version="11"><layers>{layers}</layers><edges/></net>'.encode()
    weights = np.random.default_rng(0).integers(0, 256, 340, np.uint8).tobytes()
    network = open_model((xml, weights))
    assert {key: tuple(t.shape) for key, t in network.state.items()} == {"four": (150,), "yes": (80,)}
    assert restore_model(compress(network).to_bytes()) == (xml, weights)


def test_what_is_no_model_is_refused(path: Path, tmp_path: Path) -> None:
    xml, weights = contents(path)
    for content, message in (
        (b"<net>", "can be read"),
        (b"<a/>", "expected <net> with <layers>, found <a>"),
        (b'<!DOCTYPE net [<!ENTITY a "b">]>' + xml, "no document type"),
        (xml.replace(b'offset="0"', b'offset="99999999"', 1), "give the .bin file that belongs to it"),
        (xml.replace(b'offset="0"', b'offset="-1"', 1), "lies at -1"),
    ):
        with pytest.raises(FileError, match=message):
            open_model((content, weights))
    alone = tmp_path / "alone.xml"
    alone.write_bytes(xml)
    with pytest.raises(FileError, match="alone.bin"):
        compress_model(alone)
    with pytest.raises(FormatError, match="holds no OpenVINO model, only tensors"):
        restore_model(compress({"a.weight": torch.randn(8, 8)}).to_bytes())
    with pytest.raises(FileError, match="ends in .xml"):
        restore_model(compress_model(path).to_bytes(), tmp_path / "back.onnx")
    assert not list(tmp_path.glob("back*"))


def test_a_graph_that_does_not_fit_its_tensors_is_refused() -> None:
    state = {"a.weight": torch.randn(8, 8)}
    key = "a.weight"
    for head, rest in (
        ({"xml": 99, "tensors": [[key, 0]]}, b"x"),
        ({"xml": 1, "tensors": [["b", 0]]}, b"x"),
        ({"xml": 1, "tensors": [[key, 5]]}, b"x"),
        ({"xml": 1, "tensors": [[key, -1]]}, b"x"),
        ({"xml": 1, "tensors": [[key, 0], [key, 1 << 60]]}, b"x"),
        ({"xml": 1, "tensors": [key]}, b"x"),
        ({"xml": "1", "tensors": []}, b"x"),
        ({"tensors": []}, b"x"),
        ([], b""),
    ):
        compressed = compress(state)
        section = GraphSection("openvino", json.dumps(head).encode() + b"\n" + rest)
        data = type(compressed)(compressed.tensors, [*compressed.sections, section]).to_bytes()
        with pytest.raises(FormatError):
            restore_model(data)
        with pytest.raises(FormatError):
            read_model(data)
    section = GraphSection("openvino", b'{"xml":5,"tensors":[]}\nhello')
    data = type(compressed)(compressed.tensors, [*compressed.sections, section]).to_bytes()
    with pytest.raises(FormatError, match="no model that OpenVINO can read"):
        read_model(data)


def test_restoring_needs_numpy_alone(path: Path, tmp_path: Path) -> None:
    compress_model(path).save(tmp_path / "model.ilwp")
    code = f"""
import sys
from ilwp_integrations.openvino import restore_model
restore_model({str(tmp_path / "model.ilwp")!r}, {str(tmp_path / "back.xml")!r})
print([name for name in ("torch", "scipy", "openvino", "pydantic") if name in sys.modules])"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]" and contents(tmp_path / "back.xml")[0] == contents(path)[0]


def test_on_the_command_line(path: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ilwp_plugin.cli.main import app

    run, out = CliRunner(), tmp_path / "model.ilwp"
    result = run.invoke(app, ["compress", str(path), "-o", str(out), "--preset", "lossless"], catch_exceptions=False)
    assert f"({sum(map(len, contents(path))):,} bytes)" in result.stdout
    back = tmp_path / "back.xml"
    result = run.invoke(app, ["decompress", str(out), "-o", str(back)], catch_exceptions=False)
    assert result.exit_code == 0 and contents(back) == contents(path)
