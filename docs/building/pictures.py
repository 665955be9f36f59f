"""The pictures of the tutorial and the explanations, in docs/figures.

pip install '.[report,torch]'
python docs/building/pictures.py             all pictures, from examples/digits.safetensors: half a minute
python docs/building/pictures.py --inputs    the table of docs/how_to/little_data.md
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.patches import FancyBboxPatch
from safetensors.torch import load_file
from torch import nn

from ilwp_plugin import CompressedModel, compress
from ilwp_plugin.analysis.figures import PALETTE, drawing
from ilwp_plugin.zoo import accuracy, build_model, load_data, scope_layers

ROOT = Path(__file__).parents[2]
INPUTS = 256
STEPS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3)
DATA = load_data("digits")


def network() -> nn.Module:
    return build_model("mobilenet", width=0.25, in_channels=1).eval()


def trained() -> nn.Module:
    model = network()
    model.load_state_dict(load_file(ROOT / "examples" / "digits.safetensors"))
    return model


def score(compressed: CompressedModel) -> float:
    restored = network()
    compressed.apply_to(restored)
    return accuracy(restored, DATA)


def parts(path: Path) -> None:
    """Where the bytes are, in fp32 and in two files."""
    model = trained()
    state = model.state_dict()
    depthwise = {f"{name}.weight" for name in scope_layers(model)}
    kinds = {"depthwise kernels": 0, "other weights": 0, "batch norms": 0}
    for name, tensor in state.items():
        kind = "depthwise kernels" if name in depthwise else "other weights" if tensor.dim() > 1 else "batch norms"
        kinds[kind] += tensor.nbytes
    bars = {"fp32": [*kinds.values(), (ROOT / "examples" / "digits.safetensors").stat().st_size - sum(kinds.values())]}
    for title, options in (("no data", {}), (f"{INPUTS} inputs", {"calibration": DATA.train_images[:INPUTS]})):
        whole = compress(model, **options).ledger.whole
        norms = whole.batch_norm_bytes + whole.other_bytes
        bars[title] = [
            whole.total_bytes,
            whole.grid_bytes,
            norms,
            whole.file_bytes - whole.total_bytes - whole.grid_bytes - norms,
        ]
    with drawing(path, 7.6, 2.5) as (_, axes):
        axis = axes[0]
        for row, sizes in enumerate(bars.values()):
            left = 0.0
            for colour, size, label in zip((4, 3, 6, 0), sizes, [*kinds, "names and the rest"], strict=True):
                axis.barh(-row, size / 1000, left=left, color=PALETTE[colour], label=label if row == 0 else None)
                left += size / 1000
            axis.text(left + 8, -row, f"{sum(sizes):,} bytes", va="center", fontsize=10)
        axis.set_yticks([-row for row in range(len(bars))], list(bars))
        axis.set_xlim(0, 1100)
        axis.set_xlabel("kB")
        axis.legend(loc="lower right", frameon=False)


def steps(path: Path) -> None:
    """Accuracy against bytes for some steps."""
    model = trained()
    points = []
    for step in STEPS:
        compressed = compress(model, {"weight_step": step}, calibration=DATA.train_images[:INPUTS])
        points.append((compressed.ledger.file_bytes / 1000, score(compressed), step))
    with drawing(path, 7.0, 3.4) as (_, axes):
        axis = axes[0]
        axis.axhline(accuracy(model, DATA), color=PALETTE[0], linestyle="--", linewidth=1, label="fp32, 898 kB")
        axis.plot([p[0] for p in points], [p[1] for p in points], "o-", color=PALETTE[4], label="ilwp, 256 inputs")
        for size, percent, step in points:
            axis.annotate(f"{step:g}", (size, percent), (0, -14), textcoords="offset points", ha="center", fontsize=9)
        axis.set_xlabel("kB of the file; the small numbers are steps")
        axis.set_ylabel("accuracy, %")
        axis.set_ylim(94, 98.4)
        axis.legend(frameon=False, loc="lower right")


def prediction(path: Path) -> None:
    """A kernel, its reference and the residual, with values that were chosen to show it."""
    random = np.random.default_rng(3)
    reference = np.array([[0.1, 0.5, 0.1], [0.5, 0.9, 0.4], [0.0, 0.4, 0.1]])
    kernel = reference + random.normal(0, 0.06, (3, 3))
    panels = {
        "kernel": kernel,
        "reference, of the layer before": reference,
        "residual: this is stored": kernel - reference,
    }
    with drawing(path, 2.5, 2.6, 3) as (_, axes):
        for (title, values), axis in zip(panels.items(), axes, strict=True):
            axis.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
            for (row, column), value in np.ndenumerate(values):
                colour = "white" if abs(value) > 0.6 else "black"
                axis.text(column, row, f"{value:+.2f}", ha="center", va="center", color=colour, fontsize=11)
            axis.set_title(title, fontsize=10.5)
            axis.set_xticks([])
            axis.set_yticks([])


def grid(path: Path) -> None:
    """Weights and the values that they may take."""
    step, weights = 0.2, np.array([-0.47, -0.28, -0.11, -0.05, 0.04, 0.09, 0.12, 0.24, 0.38, 0.61])
    with drawing(path, 7.4, 2.0) as (_, axes):
        axis = axes[0]
        for code in range(-3, 5):
            axis.axvline(code * step, color=PALETTE[1], linewidth=1)
            axis.text(code * step, -0.42, f"{code:d}", ha="center", fontsize=11)
        axis.axvspan(-0.66 * step, 0.66 * step, color=PALETTE[6], alpha=0.35, linewidth=0)
        for weight in weights:
            code = np.sign(weight) * np.floor(abs(weight) / step + 0.5) if abs(weight) >= 0.66 * step else 0
            axis.annotate("", (code * step, 0.12), (weight, 0.62), arrowprops={"arrowstyle": "->", "color": PALETTE[0]})
            axis.plot(weight, 0.66, "o", color=PALETTE[4])
        axis.text(0.95, 0.66, "weights", va="center")
        axis.text(0.95, 0.1, "step * code", va="center")
        axis.text(0.95, -0.42, "codes", va="center")
        axis.text(0, 0.95, "dead zone", ha="center", fontsize=10)
        axis.set_xlim(-0.7, 1.2)
        axis.set_ylim(-0.6, 1.15)
        axis.axis("off")


def boxes(path: Path, rows: list[list[tuple[str, float, int]]], height: float, arrows: bool) -> None:
    """Boxes with words, in rows: text, width, colour; with arrows from one to the next."""
    with drawing(path, 8.2, height) as (_, axes):
        axis = axes[0]
        for number, row in enumerate(rows):
            at = 0.0
            for text, width, colour in row:
                box = FancyBboxPatch(
                    (at + 0.06, -number * 1.2), width - 0.12, 0.9, boxstyle="round,pad=0,rounding_size=0.08",
                    facecolor=PALETTE[colour], alpha=0.25, edgecolor=PALETTE[colour],
                )  # fmt: skip
                axis.add_patch(box)
                axis.text(at + width / 2, -number * 1.2 + 0.45, text, ha="center", va="center", fontsize=9.5)
                if arrows and at + width < sum(item[1] for item in row) - 0.01:
                    axis.annotate(
                        "", (at + width + 0.08, -number * 1.2 + 0.45), (at + width - 0.08, -number * 1.2 + 0.45),
                        arrowprops={"arrowstyle": "->", "color": PALETTE[0]},
                    )  # fmt: skip
                at += width
        axis.set_xlim(0, max(sum(item[1] for item in row) for row in rows))
        axis.set_ylim(-1.2 * (len(rows) - 1) - 0.1, 1.0)
        axis.axis("off")


PIPELINE = [
    [("network\nmodule, state dict,\nONNX, program", 1.6, 0), ("plan\nrecipes claim\ntensors, once", 1.4, 1),
     ("calibrate\nwhat do errors\ndo to outputs?", 1.4, 6), ("quantize\nlayer by layer,\nwith feedback", 1.4, 6),
     ("encode\nsections and\nentropy coders", 1.4, 2), ("file\nread back\nand compared", 1.2, 4)],
]  # fmt: skip
FILE = [
    [("magic,\nversion", 0.9, 0), ("directory\nnames, shapes, dtypes", 2.2, 1),
     ("section table\nkinds, lengths, checksums", 2.3, 1),
     ("checksum", 1.0, 0)],
    [("chain\ndepthwise kernels", 1.5, 4), ("grid\nother weights", 2.2, 3), ("batch\nnorm", 0.8, 6),
     ("raw, floats\nthe rest", 1.0, 2),
     ("checksum\nof it all", 0.9, 0)],
]  # fmt: skip
HOUSE = [
    [("integrations/   nncf, neural_compressor, torch_pruning, onnx, openvino: they translate, no more", 8.2, 6)],
    [("cli/", 1.0, 1), ("compare/", 1.5, 1), ("demo", 1.2, 1), ("zoo/, testing/", 2.2, 1), ("analysis/", 2.3, 1)],
    [("training/   every recipe in one loop", 4.1, 2), ("pipeline/   plan, quantize, search, file", 4.1, 2)],
    [("config   one model for every front end", 4.1, 3), ("recipes/   ilwp, grid, batch_norm, yours", 4.1, 3)],
    [("models/   what a network is to the rest", 4.1, 3), ("method/   mathematics on tensors", 4.1, 3)],
    [("format/   the file: sections, coders, container; numpy alone", 8.2, 4)],
    [("ledger", 2.0, 0), ("registry, plugins, toolkits, validation", 4.0, 0), ("errors", 2.2, 0)],
]  # fmt: skip


def inputs_table() -> None:
    print("| inputs | bytes | accuracy % |\n| ---: | ---: | ---: |")
    for count in (8, 16, 32, 64, 128, 256, 512, 1024):
        compressed = compress(trained(), calibration=DATA.train_images[:count])
        print(f"| {count:,} | {compressed.ledger.file_bytes:,} | {score(compressed):.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures", help="folder")
    parser.add_argument("--inputs", action="store_true", help="print the table of little_data.md instead")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.inputs:
        inputs_table()
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Any] = {
        "tutorial_parts": parts,
        "tutorial_steps": steps,
        "explain_prediction": prediction,
        "explain_grid": grid,
        "explain_pipeline": lambda path: boxes(path, PIPELINE, 1.25, True),
        "explain_file": lambda path: boxes(path, FILE, 1.9, False),
        "house": lambda path: boxes(path, HOUSE, 5.0, True),
    }
    for name, draw in pictures.items():
        draw(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
