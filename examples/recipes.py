"""The table and the figure of docs/recipes.md, from results alone: every recipe's bytes and accuracy.

pip install 'ilwp-plugin[compare]'
python examples/recipes.py                   docs/results/recipes -> docs/recipes.md and docs/figures/recipes.png
python examples/recipes.py --results out/recipes

The results come from `ilwp compare examples/compare/recipes.json -o out/recipes`, and from the same with nncodec.json.
"""

import argparse
from pathlib import Path

from paper import fill

from ilwp_plugin.analysis.figures import PALETTE, drawing
from ilwp_plugin.compare import read_results
from ilwp_plugin.compare.report.summary import Section, Summary, sections

ROOT = Path(__file__).parent.parent
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

EPOCHS = 4
"""Of fine-tuning, where the name does not say."""

TICKS = (5, 10, 20, 50, 100, 200, 500, 1000)
"""kB."""


def name(method: Summary) -> str:
    """As the page calls it."""
    if method.method == "nncodec":
        return f"NNCodec, qp {method.options['qp']}"
    recipes = method.options.get("recipes")
    if recipes is None:
        found = {"fp32": "fp32", "baseline": "int8 + zstd -19"}
        tuned = "ilwp, fine-tuned" if method.method == "fine_tune" else "ilwp, no training"
        return found.get(method.kind, tuned)
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


def draw(found: list[Section], path: Path) -> None:
    """Bytes against the change in accuracy, a panel for each network; what loses more than 6 points is left out."""
    with drawing(path, 5.6, 4.6, len(found)) as (_, axes):
        for axis, section in zip(axes, found, strict=True):
            shown = [m for m in section.methods if m.kind != "fp32" and m.change.points > -6]
            for i, method in enumerate(sorted(shown, key=name)):
                colour = PALETTE[(i % (len(PALETTE) - 1)) + 1]
                marker = "osD^vP*"[i // (len(PALETTE) - 1)]
                x, y = method.file.mean / 1000, method.change.points
                own = {"color": colour, "marker": marker, "linestyle": "none", "label": name(method)}
                axis.errorbar(x, y, method.change.standard_error, **own)
            axis.set_xscale("log")
            low, high = axis.get_xlim()
            ticks = [tick for tick in TICKS if low <= tick <= high]
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_xticks([], minor=True)
            axis.legend(fontsize=8)
            axis.set_xlabel("kB of the file")
            axis.set_ylabel("accuracy, change in points")
            axis.set_title(f"{section.network.model}, {section.network.data}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "recipes")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    found = sections(read_results(options.results))
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (options.out / "figures").mkdir(parents=True, exist_ok=True)
    (options.out / "recipes.md").write_text(fill(text, {"table": "\n\n".join(map(table, found))}), encoding="utf-8")
    draw(found, options.out / "figures" / "recipes.png")


if __name__ == "__main__":
    main()
