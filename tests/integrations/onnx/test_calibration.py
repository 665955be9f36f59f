"""Error feedback in ONNX models: layers run as modules, all between them in ONNX Runtime."""

import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from ilwp_integrations.onnx import compress_model, load_session, open_model
from onnx import ModelProto
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from ilwp_plugin import compress, load
from ilwp_plugin.cli.calibrating import images_of
from ilwp_plugin.cli.main import app
from ilwp_plugin.errors import CalibrationError, ConfigError, FileError
from ilwp_plugin.pipeline import calibration as pipeline_calibration
from tests.integrations.onnx.graphs import GRAPHS, convolution

STEP = {"weight_step": 0.1, "dead_zone": 0.5, "batch_norm": "exact"}


class Net(nn.Module):
    """Convolutions with every option, of one and two dimensions, and both ways in which linear layers are exported."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=(1, 2), dilation=(2, 1))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2, bias=False)
        self.one = nn.Conv1d(8, 12, 3, stride=2, padding=1)
        self.matmul = nn.Linear(12, 10)
        self.gemm = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.depthwise(F.relu(self.stem(x))))))
        x = F.relu(self.one(x.flatten(2)))
        x = F.relu(self.matmul(x.transpose(1, 2)))
        y: Tensor = self.gemm(x.mean(1))
        return y


def export(net: nn.Module, x: Tensor, any_size: bool) -> ModelProto:
    buffer = io.BytesIO()
    sizes = {"dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}} if any_size else {}
    torch.onnx.export(net, (x,), buffer, dynamo=False, input_names=["x"], output_names=["y"], **sizes)
    return onnx.load_from_string(buffer.getvalue())


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 3, 11, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("any_size", [True, False])
def test_the_codes_are_those_of_the_torch_module(net: nn.Module, images: Tensor, any_size: bool) -> None:
    model = export(net, images[:1], any_size)
    ours, theirs = compress_model(model, STEP, calibration=images), compress(net, STEP, calibration=images)
    own, other = ours.state_dict(), theirs.state_dict()
    plain = compress_model(model, STEP).state_dict()
    feedback = False
    for name in ("stem", "depthwise", "grouped"):  # those before the Conv1d, which torch rounds alone
        for role in ("weight", "bias") if name != "grouped" else ("weight",):
            a, b = own[f"{name}.{role}"], other[f"{name}.{role}"]
            assert float((a - b).abs().gt(1e-4).float().mean()) < 0.02, (name, role)
            feedback |= bool((a != plain[f"{name}.{role}"]).any())
    assert feedback
    assert not ours.left
    with torch.no_grad():
        expected = net(images).numpy()

    def error(content: bytes) -> float:
        session = load_session(content)
        parts = [images.numpy()] if any_size else list(images[:, None].numpy())
        found = np.concatenate([session.run(None, {"x": part})[0] for part in parts])
        return float(np.square(found - expected).mean())

    assert error(ours.to_bytes()) < error(compress_model(model, STEP).to_bytes())


def test_one_dimension_and_transposed_weights_follow_their_inputs(net: nn.Module, images: Tensor) -> None:
    """torch rounds a Conv1d alone; here it runs as the convolution of two dimensions that it is."""
    network = open_model(export(net, images[:1], True))
    assert {layer.kind: layer.hooked for layer in network.layers.values()} == dict.fromkeys(
        ("Conv", "MatMul", "Gemm"), True
    )
    (one,) = [name for name in network.layers if name.startswith("one")]
    (matmul,) = [name for name, layer in network.layers.items() if layer.kind == "MatMul"]
    calibrated = compress(network, STEP, calibration=images).state_dict()
    plain = compress(network, STEP).state_dict()
    for name in (one, matmul):
        a, b, weight = calibrated[f"{name}.weight"], plain[f"{name}.weight"], network.state[f"{name}.weight"]
        assert a.shape == weight.shape and bool((a != b).any())
        assert float((a - weight).abs().max()) < 0.3, "not another layout"


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [7, 8])
def test_automatic_padding(auto_pad: str, size: int) -> None:
    model, _ = convolution((3, 3), 17)
    node = model.graph.node[0]
    node.attribute.append(onnx.helper.make_attribute("auto_pad", auto_pad))
    node.attribute.append(onnx.helper.make_attribute("strides", [2, 1]))
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "n"
    x = np.random.default_rng(0).standard_normal((2, 8, size, size)).astype(np.float32)
    runnable = open_model(model).runnable()
    assert runnable is not None
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(runnable(torch.from_numpy(x))[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_every_graph_runs_in_parts(name: str) -> None:
    model, inputs = GRAPHS[name]()
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_param = "n"
    runnable = open_model(model).runnable()
    assert runnable is not None
    given = {key: torch.from_numpy(np.array(value)) for key, value in inputs.items()}
    found = runnable._run(given, 1)  # the first dimension of some counts no examples
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-3, rtol=1e-3)


def test_in_bounded_memory_it_gives_the_same(net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = export(net, images[:1], True)
    whole = compress_model(model, STEP, calibration=images).state_dict()
    monkeypatch.setattr(pipeline_calibration.calibrate, "__defaults__", (100_000,))
    parts = compress_model(model, STEP, calibration=images).state_dict()
    for key, value in whole.items():
        assert float((value - parts[key]).abs().gt(1e-4).float().mean()) < 0.05, key


def test_batches_of_another_fixed_size_are_refused(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(CalibrationError, match="batches of one size"):
        compress_model(export(net, images[:4], False), calibration=images)


def test_what_does_not_fit_is_said(net: nn.Module, images: Tensor) -> None:
    model = export(net, images[:1], True)
    with pytest.raises(CalibrationError, match=re.escape("the ONNX model takes x ['n', 3, 11, 10]")):
        compress_model(model, calibration={"z": images})


def ilwp(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def path(net: nn.Module, images: Tensor, tmp_path: Path) -> Path:
    onnx.save(export(net, images[:1], True), tmp_path / "model.onnx")
    np.savez(tmp_path / "images.npz", x=images.numpy())
    return tmp_path / "model.onnx"


def test_command(path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    out = path.with_suffix(".ilwp")
    npz = path.with_name("images.npz")
    said = ilwp("compress", path, "-o", out, "--calibration", npz)
    assert re.search(r"outputs at a cosine of \d\.\d+ on the 24 calibration inputs", said)
    assert out.read_bytes() == compress_model(path, calibration=images).to_bytes(), "Python writes the same"
    report = json.loads(ilwp("compress", path, "-o", out, "--calibration", npz, "--max-drop", 0.5, "--json"))
    assert 0.995 <= report["outputs_cosine"] < 0.9999
    small = out.stat().st_size - 40
    ilwp("compress", path, "-o", out, "--calibration", npz, "--target-bytes", small)
    assert small - 200 < out.stat().st_size <= small
    (path.parent / "own_inputs.py").write_text(
        "import numpy as np\n"
        "def inputs():\n    return np.load('images.npz')['x'][:8]\n"
        "def score(session):\n    return float(session.run(None, {'x': inputs()})[0].shape[1])\n"
    )
    monkeypatch.chdir(path.parent)
    named = ["--calibration", "own_inputs:inputs", "--evaluate", "own_inputs:score", "--max-drop", 1]
    assert "on the 8 calibration inputs" in ilwp("compress", path, "-o", out, *named)


def test_command_refuses(path: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, *options: object, source: Path = path) -> None:
        with pytest.raises(error, match=match):
            ilwp("compress", source, "-o", tmp_path / "x.ilwp", *options)

    refused(ConfigError, "needs --calibration, or --evaluate", "--max-drop", 1)
    refused(FileError, "no such file or folder", "--calibration", tmp_path / "absent")
    refused(ConfigError, "cannot import absent", "--calibration", "absent:inputs")
    refused(ConfigError, "has no 'absent'", "--calibration", "json:absent")
    np.savez(tmp_path / "objects.npz", x=np.array([None, {}], object))
    refused(FileError, "no .npz file of plain arrays", "--calibration", tmp_path / "objects.npz")
    np.savez(tmp_path / "empty.npz")
    refused(CalibrationError, "holds no array", "--calibration", tmp_path / "empty.npz")
    np.savez(tmp_path / "few.npz", x=np.zeros((3, 3, 11, 10), np.float32))
    refused(CalibrationError, "3 examples, of which one in 5", "--calibration", tmp_path / "few.npz", "--max-drop", 1)
    (tmp_path / "images").mkdir()
    refused(ConfigError, "one of 0..1, -1..1", "--calibration", tmp_path / "images")
    refused(CalibrationError, "holds no image", "--calibration", tmp_path / "images", "--pixels", "0..1")
    torch.save({"a.weight": torch.randn(4, 4)}, tmp_path / "m.pt")
    refused(ConfigError, "a state dict cannot be run", "--calibration", "json:loads", source=tmp_path / "m.pt")


def test_a_folder_of_images(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (10, 20, 30)
    Image.fromarray(wide).save(tmp_path / "b.png")
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(tmp_path / "A.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    shape = {"x": ["n", 3, "h", "w"]}
    found = images_of(tmp_path, shape, "0..255", 20)
    assert found.shape == (2, 3, 20, 20) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], 255)
    np.testing.assert_allclose(
        found[1, :, :, 2:18], np.array([10, 20, 30], np.float32)[:, None, None] * np.ones(20)[:, None] * np.ones(16)
    )
    np.testing.assert_allclose(images_of(tmp_path, {"x": [1, 8, 8, 1]}, "-1..1", None)[0], 1)
    norm = images_of(tmp_path, {"x": [1, 3, 8, 8]}, "imagenet", None)[0, :, 0, 0]
    np.testing.assert_allclose(norm, (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-5)
    with pytest.raises(ConfigError, match="--size 224"):
        images_of(tmp_path, shape, "0..1", None)
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        images_of(tmp_path, {"x": [1, 5, 8, 8]}, "0..1", None)
    with pytest.raises(ConfigError, match="one input"):
        images_of(tmp_path, {"x": [1, 3, 8, 8], "y": [1]}, "0..1", None)
    (tmp_path / "c.jpg").write_bytes(b"junk")
    with pytest.raises(FileError, match=r"c\.jpg"):
        images_of(tmp_path, shape, "0..1", 8)


def test_a_program_of_torch(net: nn.Module, images: Tensor, path: Path) -> None:
    size = {"x": {0: torch.export.Dim("n", min=1, max=1024)}}
    program = torch.export.export(net, (images[:2],), dynamic_shapes=size)
    torch.export.save(program, path.with_suffix(".pt2"))
    out = path.with_suffix(".ilwp")
    source = ["compress", path.with_suffix(".pt2"), "-o", out, "--calibration", path.with_name("images.npz")]
    with pytest.raises(FileError, match="--trust"):
        ilwp(*source)
    said = ilwp(*source, "--trust", "--max-drop", 2)
    assert "inputs that were held back" in said
    assert load(out).state_dict().keys() == program.state_dict.keys()
