"""The service and the update, as a reader runs them."""

import importlib.util
import io
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from ilwp_integrations.onnx import compress_model, load_session
from onnx import numpy_helper

from ilwp_plugin.format import read
from tests.integrations.onnx.graphs import build, random

EXAMPLES = Path(__file__).parent.parent.parent.parent / "examples" / "onnx"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_onnx_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(seed: int = 0) -> Any:
    """Depthwise layers in a chain, and dense ones."""
    nodes = [onnx.helper.make_node("Conv", [f"v{i}", f"w{i}", f"b{i}"], [f"v{i + 1}"], group=16) for i in range(3)]
    nodes += [onnx.helper.make_node("Conv", [f"v{i}", f"w{i}", f"b{i}"], [f"v{i + 1}"]) for i in (3, 4)]
    values = {f"w{i}": random(16, 1, 3, 3, seed=i + 10 * seed) for i in range(3)}
    values |= {f"w{i}": random(16, 16, 1, 1, seed=i + 10 * seed) for i in (3, 4)} | {
        f"b{i}": random(16) for i in range(5)
    }
    return build(nodes, {"v0": random(1, 16, 9, 9)}, {"v5": [1, 16, 3, 3]}, values)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    onnx.save(network()[0], tmp_path / "old.onnx")
    compress_model(tmp_path / "old.onnx").save(tmp_path / "old.ilwp")
    return tmp_path / "old.ilwp"


def test_a_service(old: Path) -> None:
    server = example("serve").service(old, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    inputs = network()[1]
    body = io.BytesIO()
    np.save(body, inputs["v0"])

    def post(content: bytes) -> Any:
        return json.load(urllib.request.urlopen(urllib.request.Request(address, content), timeout=30))

    expected = load_session(old).run(None, inputs)[0]
    np.testing.assert_array_equal(np.array(post(body.getvalue()), np.float32), expected)
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(b"junk")
    assert refused.value.code == 400
    compress_model(network(1)[0]).save(old)
    other = np.array(post(body.getvalue()), np.float32)
    assert not np.array_equal(other, expected)
    old.write_bytes(old.read_bytes()[:-9])
    np.testing.assert_array_equal(np.array(post(body.getvalue()), np.float32), other)
    assert json.load(urllib.request.urlopen(address, timeout=30))["fault"]
    server.shutdown()
    server.server_close()


def test_an_update(old: Path) -> None:
    update = example("update")
    model = network()[0]
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values + 0.01 * random(*values.shape, seed=99), tensor.name))
    new, difference = old.with_name("new.onnx"), old.with_name("difference.ilwp")
    onnx.save(model, new)
    sent, whole = update.make(old, new, difference)
    assert sent == difference.stat().st_size and sent < 0.75 * whole
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'scipy', 'pydantic'): sys.modules[name] = None\n"
        f"sys.argv[0] = {str(EXAMPLES / 'update.py')!r}\n"
        "exec(open(sys.argv[0]).read())\n"
    )
    arguments = ["apply", str(old), str(difference), "-o", str(old.with_name("new.ilwp"))]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = read(old.with_name("new.ilwp"))
    before = read(old)
    wanted = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in found.names:
        source = wanted[name.removesuffix(".weight") if name.endswith(".weight") else f"b{name[1]}"]
        own, was = found.tensor(name), before.tensor(name)
        assert np.abs(own - source).mean() < np.abs(was - source).mean() or np.array_equal(was, source), name
    inputs = network()[1]
    again = load_session(old.with_name("new.ilwp")).run(None, inputs)[0]
    exact = load_session(compress_model(model, "lossless").to_bytes()).run(None, inputs)[0]
    first = load_session(old).run(None, inputs)[0]
    assert np.square(again - exact).mean() < np.square(first - exact).mean()
    with pytest.raises(Exception, match="no difference to"):
        update.apply(old.with_name("new.ilwp"), difference, old.with_name("x.ilwp"))
