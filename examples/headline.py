"""The README's figure and headline table, and the results in docs/compare.md, from results alone.

pip install 'ilwp-plugin[compare]'
python examples/headline.py                  docs/results/table1 -> README.md, docs/compare.md and docs/figures
python examples/headline.py --results out/table1

The results come from `ilwp compare examples/compare/table1.json -o out/table1`. Of each kind of method the
smallest file is shown that keeps the accuracy of fp32, which the report of a comparison defines; of kinds without
any, the most accurate one. Of ilwp the smallest without training is shown, too.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from paper import fill

from ilwp_plugin.analysis.figures import PALETTE, drawing
from ilwp_plugin.compare import build_report, read_results
from ilwp_plugin.compare.report.summary import Summary, sections

ROOT = Path(__file__).parent.parent
OWNERS = (
    "fp32",
    "no toolkit",
    "NNCF",
    "INC",
    "torch-pruning",
    "NNCF + ilwp",
    "torch-pruning + ilwp",
    "INC + ilwp",
    "ilwp",
)
NAMES = {"no toolkit": "integers and zstd"}


def chosen(methods: list[Summary]) -> list[Summary]:
    """The rows, in order: of each owner one, and of ilwp one without training too."""
    untrained = [m for m in methods if m.kind == "ilwp" and m.method == "ilwp"]
    rows = []
    for own in ([m for m in methods if m.owner == owner] for owner in OWNERS):
        for kind in (own, untrained if own and own[0].kind == "ilwp" else []):
            if kind:
                best = min(kind, key=lambda m: (not m.change.fits, m.file.mean if m.change.fits else -m.accuracy.mean))
                rows += [best] if best not in rows else []
    return sorted(rows, key=lambda m: -m.file.mean)


def title(method: Summary) -> str:
    """As a reader knows it."""
    return "fp32 (safetensors)" if method.kind == "fp32" else method.title


def table(rows: list[Summary]) -> str:
    """In Markdown."""
    fp32 = rows[0].file.mean
    lines = ["| file | bytes | of fp32 | accuracy %, change |", "| --- | ---: | ---: | ---: |"]
    for m in rows:
        bold = "**" if m.kind == "ilwp" else ""
        change = "" if m.kind == "fp32" else f", {m.change.points:+.2f} ± {m.change.standard_error:.2f}"
        ratio = "1" if m.kind == "fp32" else f"1/{fp32 / m.file.mean:.{0 if fp32 / m.file.mean >= 10 else 1}f}"
        cells = [f"{bold}{title(m)}{bold}", f"{bold}{m.file.mean:,.0f}{bold}", ratio, f"{m.accuracy.mean:.2f}{change}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[Summary], path: Path) -> None:
    """Bars."""
    with drawing(path, 8.4, 0.42 * len(rows) + 0.7) as (_, axes):
        axis = axes[0]
        fp32 = rows[0].file.mean
        for i, m in enumerate(rows):
            colour = {"ilwp": PALETTE[4], "stacked": PALETTE[6], "fp32": PALETTE[0]}.get(m.kind, PALETTE[1])
            axis.barh(-i, m.file.mean / 1000, color=colour, height=0.72)
            times = (
                ""
                if m.kind == "fp32"
                else f"  1/{fp32 / m.file.mean:.3g}  ({round(m.change.points, 1) + 0.0:+.1f} points)"
            )
            axis.text(
                m.file.mean / 1000 + fp32 / 1e5, -i, f"{m.file.mean / 1000:,.0f} kB{times}", va="center", fontsize=9
            )
        axis.set_yticks([-i for i in range(len(rows))], [short(m) for m in rows], fontsize=9)
        axis.set_xlim(0, 1.16 * fp32 / 1000)
        axis.set_xlabel("kB of the file")
        axis.tick_params(axis="y", length=0)


def short(method: Summary) -> str:
    """A title that fits on an axis."""
    name = (
        title(method)
        .replace("all layers, ", "")
        .replace(" collocated", "")
        .replace("auto, ", "")
        .replace("aligned, ", "")
        .replace(" of fine-tuning", "")
    )
    name = re.sub(r"residual step [\d.]+, |(?<=%) of (weights|channels)| weights(?=$| \+)", "", name)
    return name if len(name) <= 46 else name[:45] + "…"


LEFT_OUT = ("Fig. 4", "Fig. 5")
"""Of the report: what docs/paper.md has of more networks."""


def report(results: Path, figures: Path) -> str:
    """The report's sections, with its pictures among the others of the docs."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(results / "results.jsonl", folder)
        build_report(folder)
        text = (Path(folder) / "tables.md").read_text(encoding="utf-8")
        parts = re.split(r"(?=^### )", text.partition("\n## How it was measured")[0], flags=re.MULTILINE)[1:]
        kept = "".join(part for part in parts if not part.startswith(tuple(f"### {name}" for name in LEFT_OUT)))
        for name in re.findall(r"\]\((\S+\.png)\)", kept):
            own = f"table1_{name.partition('_')[2]}"
            shutil.copy(Path(folder) / name, figures / own)
            kept = kept.replace(f"]({name})", f"](figures/{own})")
    return kept.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=ROOT / "docs" / "results" / "table1", help="a folder of results"
    )
    parser.add_argument("--out", type=Path, default=ROOT, help="where README.md and docs are written")
    arguments = parser.parse_args()
    (section,) = sections(read_results(arguments.results))
    rows = chosen(list(section.methods))
    figures = arguments.out / "docs" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    made = {
        "README.md": {"headline": table(rows)},
        "docs/compare.md": {"results": report(arguments.results, figures)},
    }
    for name, parts in made.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        (arguments.out / name).write_text(fill(text, parts), encoding="utf-8")
    draw(rows, figures / "headline.png")


if __name__ == "__main__":
    main()
