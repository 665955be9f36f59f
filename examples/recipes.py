"""The tables and the figure of docs/recipes.md, from results alone: every recipe's bytes and accuracy.

pip install 'ilwp-plugin[compare]'
python examples/recipes.py                   docs/results/recipes -> docs/recipes.md and docs/figures/recipes.png
python examples/recipes.py --results out/recipes
python examples/recipes.py --look out/recipes    counts the values in its files of LeNet-5 (values.jsonl) before

The results come from `ilwp compare examples/compare/recipes.json -o out/recipes`, and from the same with nncodec.json.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.artist import Artist
from paper import fill

from ilwp_plugin import load
from ilwp_plugin.analysis.figures import PALETTE, drawing
from ilwp_plugin.compare import MethodResult, TrainingResult, read_results
from ilwp_plugin.compare.report.summary import Section, Summary, sections

ROOT = Path(__file__).parent.parent
VALUES = ROOT / "docs" / "results" / "recipes" / "values.jsonl"
NAMES = {
    "deep_compression": "Deep Compression",
    "slq": "SLQ",
    "mlq": "MLQ",
    "soft_weight_sharing": "soft weight-sharing",
    "ecsq": "ECSQ",
    "universal": "Universal",
    "soft_to_hard": "soft-to-hard",
    "weight_fixing": "weight fixing",
}

SETTINGS = ("sparsity", "clusters", "codebook", "quantizer", "step", "bits", "distance", "tau")
"""What tells rows of a recipe apart."""

EPOCHS = 4
"""Of fine-tuning, where the name does not say."""

TICKS = (5, 10, 20, 50, 100, 200, 500, 1000)
"""kB."""


def name(method: Summary | MethodResult) -> str:
    """As the page calls it."""
    if method.method == "nncodec":
        return f"NNCodec, qp {method.options['qp']}"
    recipes = method.options.get("recipes")
    if recipes is None:
        found = {
            "fp32": "fp32",
            "zstd": "int8 + zstd -19",
            "fine_tune": "ilwp, fine-tuned",
            "ilwp": "ilwp, no training",
        }
        return found[method.method]
    own = next(recipe for recipe in recipes if recipe["name"] in NAMES)
    once = " (k-means, all fixed at once)" if own["name"] == "slq" and len(own.get("fixed", [])) == 1 else ""
    longer = f", {method.options['epochs']} epochs" if method.options["epochs"] != EPOCHS else ""
    stacked = "ilwp + " if any(recipe["name"] == "ilwp" for recipe in recipes) else ""
    return f"{stacked}{NAMES[own['name']]}{once}{longer}"


def table(section: Section) -> str:
    """In Markdown, the smallest file last."""
    assert section.fp32 is not None
    lines = [
        f"| {section.network.model}, {section.network.data} | seeds | file, bytes | of fp32 | accuracy, change |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for method in sorted(section.methods, key=lambda m: -m.file.mean):
        change = f", {method.change.points:+.2f} ± {method.change.standard_error:.2f}"
        ratio = section.fp32.file.mean / method.file.mean
        lines.append(
            f"| {name(method)} | {len(method.seeds)} | {method.file.mean:,.0f} | 1/{ratio:.3g} | "
            f"{method.accuracy.mean:.2f}{'' if method.kind == 'fp32' else change} |"
        )
    return "\n".join(lines)


def stacks(model: str, results: Sequence[TrainingResult | MethodResult]) -> str:
    """In Markdown: each recipe alone and with ilwp, which has what it predicts; means over the seeds of both."""
    rows: dict[str, dict[int, tuple[float, float]]] = {}
    for result in results:
        if isinstance(result, MethodResult) and result.network.model == model:
            change = 100 * (result.accuracy.right - result.accuracy.fp32) / result.accuracy.images
            rows.setdefault(name(result), {})[result.network.seed] = (result.sizes.file_bytes, change)
    lines = [
        f"| {model} | seeds | alone, bytes | change | with ilwp, bytes | change | bytes | points |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label in NAMES.values():
        alone, stacked = rows.get(label, {}), rows.get(f"ilwp + {label}", {})
        seeds = sorted(alone.keys() & stacked.keys())
        if not seeds:
            continue
        (before, lost), (after, still) = (np.mean([own[seed] for seed in seeds], axis=0) for own in (alone, stacked))
        lines.append(
            f"| {label} | {', '.join(map(str, seeds))} | {before:,.0f} | {lost:+.2f} | {after:,.0f} | {still:+.2f} | "
            f"{100 * (after / before - 1):+.1f} % | {still - lost:+.2f} |"
        )
    return "\n".join(lines)


def is_short(value: float, terms: int = 3) -> bool:
    """Whether a number is the sum of so many signed powers of two: counted in the non-adjacent form of its mantissa."""
    mantissa, count = int(abs(math.frexp(value)[0]) * 2**24), 0
    while mantissa:
        if mantissa & 1:
            mantissa -= 2 - (mantissa & 3)
            count += 1
        mantissa >>= 1
    return count <= terms


def look(folder: Path) -> None:
    """What a comparison's files of LeNet-5 hold: distinct weights, their entropy, zeros, sums of powers of two."""
    lines = []
    for result in read_results(folder):
        path = folder / "files" / result.key / "model"
        if not isinstance(result, MethodResult) or result.network.model != "lenet5" or not path.exists():
            continue
        if len(result.options.get("recipes", ())) != 3:  # a recipe alone, with `grid` and `batch_norm`
            continue
        weights = [t.flatten() for t in load(path).state_dict().values() if t.dim() > 1]
        values, counts = np.unique(torch.cat(weights).numpy(), return_counts=True)
        shares = counts / counts.sum()
        short = [value != 0 and is_short(float(value)) for value in values]
        own = next(recipe for recipe in result.options["recipes"] if recipe["name"] in NAMES)
        row = {
            "recipe": name(result),
            "setting": ", ".join(f"{key} {own[key]}" for key in SETTINGS if key in own),
            "seed": result.network.seed,
            "values": len(values),
            "entropy": round(float(-(shares * np.log2(shares)).sum()), 3),
            "zeros": round(100 * float(shares[values == 0].sum()), 1),
            "short": int(sum(short)),
            "bytes": result.sizes.file_bytes,
            "change": round(100 * (result.accuracy.right - result.accuracy.fp32) / result.accuracy.images, 2),
        }
        lines.append(json.dumps(row) + "\n")
    VALUES.write_text("".join(sorted(lines)), encoding="utf-8")


def values() -> str:
    """The same as a table in Markdown."""
    lines = [
        "| lenet5, seed 0 | setting | bytes | values | of 3 powers of two | bits a weight | zeros | change |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in VALUES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        lines.append(
            f"| {row['recipe']} | {row['setting']} | {row['bytes']:,} | {row['values']:,} | {row['short']:,} | "
            f"{row['entropy']:.2f} | {row['zeros']:.1f} % | {row['change']:+.2f} |"
        )
    return "\n".join(lines)


def draw(found: list[Section], path: Path) -> None:
    """Bytes against the change in accuracy, a panel for each network; what loses more than 6 points is left out.

    A recipe has a colour and a shape, filled alone and hollow with ilwp; a line joins the two.
    """
    colours = {label: (PALETTE[1 + i % 6], "os^D"[i // 6]) for i, label in enumerate(NAMES.values())}
    with drawing(path, 5.6, 4.6, len(found)) as (figure, axes):
        handles: dict[str, Artist] = {}
        for axis, section in zip(axes, found, strict=True):
            shown = {name(m): m for m in section.methods if m.kind != "fp32" and m.change.points > -6}
            for label, method in shown.items():
                stacked, rest = label.startswith("ilwp + "), label.removeprefix("ilwp + ")
                plain = rest.partition(" (")[0].partition(", ")[0]
                colour, marker = colours.get(plain, ("black", "*") if "ilwp" in label else (PALETTE[0], "x"))
                marker = {"SLQ (": "P", "NNCod": "+"}.get(label[:5], marker)
                x, y = method.file.mean / 1000, method.change.points
                own = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 7}
                hollow = {"markerfacecolor": "white"} if stacked or label == "ilwp, no training" else {}
                drawn = axis.errorbar(x, y, method.change.standard_error, elinewidth=0.8, **own, **hollow)
                if alone := shown.get(rest) if stacked else None:
                    points = [alone.file.mean / 1000, x], [alone.change.points, y]
                    axis.plot(*points, color=colour, linewidth=0.8, zorder=1)
                if not stacked:
                    handles.setdefault(
                        "NNCodec" if label.startswith("NNCodec") else label.removesuffix(", 30 epochs"), drawn
                    )
            axis.set_xscale("log")
            low, high = axis.get_xlim()
            ticks = [tick for tick in TICKS if low <= tick <= high]
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_xticks([], minor=True)
            axis.grid(alpha=0.3)
            axis.set_xlabel("kB of the file")
            axis.set_ylabel("accuracy, change in points")
            axis.set_title(f"{section.network.model}, {section.network.data}")
        ordered = sorted(handles, key=lambda label: ("ilwp" not in label, label))
        title = "hollow: stacked with ilwp"
        figure.legend([handles[n] for n in ordered], ordered, loc="outside right center", fontsize=8, title=title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "recipes")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--look", type=Path, help="a folder of `ilwp compare`, with its files")
    options = parser.parse_args()
    if options.look is not None:
        look(options.look)
    results = read_results(options.results)
    found = sections(results)
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (options.out / "figures").mkdir(parents=True, exist_ok=True)
    parts = {
        "table": "\n\n".join(map(table, found)),
        "values": values(),
        "stacks": "\n\n".join(stacks(section.network.model, results) for section in found),
    }
    (options.out / "recipes.md").write_text(fill(text, parts), encoding="utf-8")
    draw(found, options.out / "figures" / "recipes.png")


if __name__ == "__main__":
    main()
