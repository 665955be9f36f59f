"""How small a network gets: bytes against accuracy after training, with distilled scales, and after 1, 3 and 8 epochs.

pip install 'ilwp-plugin[pruning,report]'
python examples/how_small.py --seeds 0 1 2                      Fashion-MNIST, MobileNet of width 0.5
python examples/how_small.py --network mobilenetv2 --methods calibrated-0.065 epochs-3
python examples/how_small.py --table                            what the results say, as a table; nothing runs
python examples/how_small.py --figure docs/figures/how_small.png

Each result is appended to RESULTS as it comes, and what is there is not done again. Networks that are not in --models
are trained first, and kept there.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilwp_plugin import CompressedModel, IlwpConfig, compress, loads
from ilwp_plugin.demo import initial_model, preset
from ilwp_plugin.training import FineTuning, distill_scales, distillation_loss, fine_tune
from ilwp_plugin.zoo import Dataset, Recipe, load_data, scope_of, train

RESULTS = Path("docs/results/how_small/results.jsonl")
NNCODEC = RESULTS.with_name("nncodec.jsonl")
"""What examples/peers/table.py has printed, for the figure."""
CALIBRATION = 2000
"""Training images, without labels."""

CALIBRATED = {f"calibrated-{step:g}": step for step in (0.055, 0.065, 0.08)}
SCRATCH = {"scratch-0.065": 0.065}
"""Likewise, of a network that was trained with the inter-layer loss from the beginning, for as many epochs."""
SCALES = {f"scales-{step:g}": step for step in (0.065, 0.08)}
"""A calibrated file whose scales are distilled on all training images, in one epoch."""

EPOCHS: dict[str, dict[str, Any]] = {
    "epochs-1": {"epochs": 1, "weight_step": 0.1, "rate": 0.5},
    "epochs-3": {"epochs": 3, "weight_step": 0.1, "rate": 0.5},
    "epochs-8": {"epochs": 8, "weight_step": 0.1, "rate": 0.5},
    "epochs-60": {"epochs": 60, "weight_step": 0.1, "rate": 0.5},  # digits: 1,500 images, 23 steps an epoch
    "epochs-3-fine": {"epochs": 3, "weight_step": 0.08, "rate": 0.25},
    "epochs-3-coarse": {"epochs": 3, "weight_step": 0.11, "rate": 0.7},
    "epochs-3-coarser": {"epochs": 3, "weight_step": 0.13, "rate": 0.8},
    "epochs-3-coarsest": {"epochs": 3, "weight_step": 0.13, "rate": 1.0},
    "epochs-3-tiny": {"epochs": 3, "weight_step": 0.15, "rate": 1.0},
    "epochs-3-bytes": {"epochs": 3, "weight_step": 0.1, "rate": 0.5, "target_bytes": 60_000},
}
ALONE = {"epochs": 3, "preset": "paper", "anchor": "quantized"}
DEPTHWISE = {
    "depthwise-3": {**ALONE, "residual_step": 0.1, "rate": 0.05},
    "depthwise-3-rate": {**ALONE, "residual_step": 0.1, "rate": 0.1},
    "depthwise-3-coarse": {**ALONE, "residual_step": 0.16, "rate": 0.1},
    "depthwise-3-free": {**ALONE, "residual_step": 0.16, "rate": 0.1, "loss_weight": 0.0},
    "depthwise-3-free-rate": {**ALONE, "residual_step": 0.16, "rate": 0.5, "loss_weight": 0.0},
}
"""The chains alone: all other tensors stay as they are."""

METHODS = [*CALIBRATED, *SCRATCH, *SCALES, *EPOCHS, *DEPTHWISE]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="fashion-mnist")
parser.add_argument("--data-folder")
parser.add_argument("--network", default="mobilenet")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
parser.add_argument("--models", type=Path, default=Path("out/how_small"))
parser.add_argument("--results", type=Path, default=RESULTS)
parser.add_argument("--table", action="store_true")
parser.add_argument("--figure", type=Path)
options = parser.parse_args()


class Case:
    """A trained network, and what it makes of the data."""

    def __init__(self, seed: int) -> None:
        self.seed, self.settings = seed, preset(options.data, model=options.network, seed=seed)
        self.data: Dataset = load_data(options.data, options.data_folder)
        self.model = self.trained(with_loss=False)
        self.model.eval()
        self.train, self.test = self.outputs(self.model, self.data.train_images), self.tested(self.model)
        generator = torch.Generator().manual_seed(0)
        self.calibration = self.data.train_images[torch.randperm(len(self.train), generator=generator)[:CALIBRATION]]

    def trained(self, with_loss: bool) -> nn.Module:
        settings, model = self.settings, initial_model(self.settings, self.data)
        path = options.models / f"{options.data}-{options.network}-{self.seed}{'-loss' if with_loss else ''}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model
        recipe = Recipe(epochs=settings.epochs, batch=settings.batch, seed=settings.seed)
        train(model, self.data, recipe, IlwpConfig(scope=scope_of(model)) if with_loss else None)
        options.models.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
        return model

    @torch.no_grad()
    def outputs(self, model: nn.Module, images: Tensor) -> Tensor:
        return torch.cat([model(part) for part in images.split(1000)])

    def tested(self, model: nn.Module) -> Tensor:
        return self.outputs(model.eval(), self.data.test_images)

    def accuracy(self, outputs: Tensor) -> float:
        return 100 * float((outputs.argmax(1) == self.data.test_labels).float().mean())

    def run(self, method: str) -> CompressedModel:
        if method in CALIBRATED:
            return self.calibrated(self.model, CALIBRATED[method])
        if method in SCRATCH:
            return self.calibrated(self.trained(with_loss=True).eval(), SCRATCH[method])
        if method in SCALES:
            found = self.calibrated(self.model, SCALES[method])
            return distill_scales(self.model, found, self.data.train_images, loss=divergence, norm_bits=3)
        tuned: dict[str, Any] = dict({**EPOCHS, **DEPTHWISE}[method])
        plan = FineTuning(epochs=tuned.pop("epochs"), batch=self.settings.batch, seed=self.seed)
        target = tuned.pop("target_bytes", None)
        images = self.data.train_images.contiguous(memory_format=torch.channels_last)
        result = fine_tune(
            copy.deepcopy(self.model).to(memory_format=torch.channels_last),
            TensorDataset(images, self.data.train_labels, self.train),
            lambda net, batch: distillation_loss(net(batch[0]), batch[1], batch[2]),
            self.config(**tuned),
            plan,
            example_inputs=self.data.train_images[:16],
            calibration=self.calibration,
            target_bytes=target,
            report=lambda progress: print(f"  {progress}", flush=True) if progress.step % 50 == 0 else None,
        )
        return result.compressed

    def config(self, **fields: Any) -> IlwpConfig:
        scope = scope_of(self.model)
        mode = {"mode": "collocated", "align": True} if scope == "depthwise" else {"mode": "auto"}
        return IlwpConfig.from_dict({"scope": scope, **mode, **fields})

    def calibrated(self, model: nn.Module, step: float) -> CompressedModel:
        config = self.config(weight_step=step)
        return compress(model, config, calibration=self.calibration, example_inputs=self.data.train_images[:16])

    def result(self, method: str) -> dict[str, Any]:
        begin = time.monotonic()
        content = self.run(method).to_bytes()
        seconds = time.monotonic() - begin
        restored, file = copy.deepcopy(self.model), loads(content)
        file.apply_to(restored)
        found = self.tested(restored)
        logs = [F.log_softmax(outputs, 1) for outputs in (found, self.test)]
        sizes = file.ledger
        paper = IlwpConfig.paper(mode="none", coder="huffman", scope=scope_of(self.model))  # 8 bits
        baseline = compress(self.model, paper, example_inputs=self.data.train_images[:2])
        return {
            "data": options.data,
            "network": options.network,
            "seed": self.seed,
            "method": method,
            "fp32_bytes": 4 * sum(parameter.numel() for parameter in self.model.parameters()),
            "fp32_accuracy": self.accuracy(self.test),
            "file_bytes": len(content),
            "chain_bytes": sizes.total_bytes,
            "baseline_chain_bytes": baseline.ledger.total_bytes,
            "grid_bytes": sizes.grid_bytes,
            "batch_norm_bytes": sizes.batch_norm_bytes,
            "accuracy": self.accuracy(found),
            "divergence": float(F.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)),
            "seconds": round(seconds, 1),
            "torch": torch.__version__,
        }


def divergence(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the outputs alone: no labels."""
    return distillation_loss(outputs, targets.argmax(1), targets, share=1.0)


def read() -> list[dict[str, Any]]:
    if not options.results.exists():
        return []
    return [json.loads(line) for line in options.results.read_text().splitlines() if line]


def grouped(results: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["data"], result["network"], result["method"]), []).append(result)
    return groups


def table(results: list[dict[str, Any]]) -> None:
    """Networks one after the other, each from its largest file to its smallest; chains alone at its end."""
    rows: list[tuple[Any, str]] = []
    for (data, network, method), own in grouped(results).items():
        size = mean(result["chain_bytes" if method in DEPTHWISE else "file_bytes"] for result in own)
        change = mean(result["accuracy"] - result["fp32_accuracy"] for result in own)
        seeds = ", ".join(str(result["seed"]) for result in sorted(own, key=lambda result: result["seed"]))
        apart = mean(result["divergence"] for result in own)
        share = f"1/{mean(result['fp32_bytes'] / result['file_bytes'] for result in own):.1f}"
        if method in DEPTHWISE:
            share = f"{mean(r['chain_bytes'] / r['baseline_chain_bytes'] for r in own):.3f} of 8 bits, chains alone"
        row = f"| {data}, {network} | {method} | {seeds} | {size:,.0f} | {share} | {change:+.2f} | {apart:.4f} |"
        rows.append(((data == "digits", network, method in DEPTHWISE, -size), row))
    print("| data, network | method | seeds | file B | of fp32 | accuracy, change | divergence |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(*(row for _, row in sorted(rows)), sep="\n")


def figure(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[float, float]]] = {}
    for (data, network, method), own in grouped(results).items():
        if (data, network) == (options.data, options.network) and method not in DEPTHWISE:
            point = mean(r["file_bytes"] for r in own) / 1000, mean(r["accuracy"] - r["fp32_accuracy"] for r in own)
            kind = method.split("-")[0] if method[0] != "e" else "-".join(method.split("-")[:2])
            lines.setdefault(kind, []).append(point)
    for line in NNCODEC.read_text().splitlines():
        point = json.loads(line)
        if (point["data"], point["network"]) == (options.data, options.network):
            tuned = "" if point["nonweight_qp"] == -75 else " tuned"
            lines.setdefault(f"NNCodec{tuned}", []).append((point["file_bytes"] / 1000, point["change"]))
    drawing, axes = pyplot.subplots(figsize=(7, 4))
    for kind, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=kind)
    axes.set_xscale("log")
    ticks = [40, 60, 80, 100, 150, 200, 300]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("file, KB")
    axes.set_ylabel("accuracy, change in points")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=120, bbox_inches="tight")


if options.figure is not None:
    figure(read(), options.figure)
elif not options.table:
    done = {tuple(result[name] for name in ("data", "network", "seed", "method")) for result in read()}
    for seed in options.seeds:
        methods = [m for m in options.methods if (options.data, options.network, seed, m) not in done]
        case = Case(seed) if methods else None
        for method in methods:
            assert case is not None
            found = case.result(method)
            options.results.parent.mkdir(parents=True, exist_ok=True)
            with options.results.open("a") as file:
                file.write(json.dumps(found, allow_nan=False) + "\n")
            print(json.dumps(found), flush=True)
table(read())
