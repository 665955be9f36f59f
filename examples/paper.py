"""The paper's claims beside what was measured here: the tables in docs/paper.md and its figures, from results alone.

pip install 'ilwp-plugin[compare]'
python examples/paper.py                   docs/results/{figures,digits,conv} -> docs/paper.md and docs/figures
python examples/paper.py --results out     from comparisons in out/figures, out/digits, out/conv

The results come from `ilwp compare examples/compare/NAME.json -o out/NAME`; the page tells what is missing in them. Its
sentences are written by hand; what stands between the markers `<!-- NAME -->` and `<!-- /NAME -->` is made here.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import laplace, norm

from ilwp_plugin.analysis import Distribution, ReferenceShares
from ilwp_plugin.analysis.figures import PALETTE, draw_distributions, drawing
from ilwp_plugin.compare import CompareConfig, MethodResult, read_results
from ilwp_plugin.compare.report.summary import Change, Estimate, Section, Summary, sections

ROOT = Path(__file__).parent.parent
RESULTS = ("figures", "digits", "conv")
NAMES = {
    "mobilenet": "MobileNet",
    "mobilenetv2": "MobileNetV2",
    "shufflenet": "ShuffleNet",
    "shufflenetv2": "ShuffleNetV2",
    "resnet20": "ResNet-20",
    "vgg": "VGG-like",
}
WITHOUT, WITH = 0, "auto"
BITS = (8, 7, 6, 5, 4, 3, 2)

PAPER = {  # Table 1: texture, non-texture, total in KB, accuracy in %
    "baseline": (70.192, 0.0, 70.192, 92.125),
    "ILWP-FSS": (67.716, 11.177, 78.893, 92.225),
    "ILWP-LSS": (67.415, 8.540, 75.955, 92.235),
    "ILWP-ILL": (33.373, 0.0, 33.373, 91.48),
}
ROWS = (
    ("baseline", "none", WITHOUT),
    ("ILWP-FSS", "full", WITHOUT),
    ("ILWP-LSS", "local", WITHOUT),
    ("ILWP-ILL", "collocated", WITH),
)
"""Of Table 1: the paper's name, mode, weight of the loss."""
CURVES = (
    ("no prediction", "none", WITHOUT),
    ("full search", "full", WITHOUT),
    ("local search", "local", WITHOUT),
    ("collocated", "collocated", WITHOUT),
    ("collocated, with the loss", "collocated", WITH),
)


# --- what was measured


@dataclass(frozen=True)
class Network:
    """All results of one network, with its section of the report."""

    section: Section
    results: Sequence[MethodResult]

    @property
    def name(self) -> str:
        network = self.section.network
        return NAMES[network.model] + (f", {network.epochs} epochs" if network.epochs >= 100 else "")

    @property
    def order(self) -> int:
        return list(NAMES).index(self.section.network.model)

    def of(self, mode: str, loss: float | str, bits: int) -> dict[int, MethodResult]:
        """By seed."""
        return {
            r.network.seed: r
            for r in self.results
            if r.method == "ilwp"
            and (r.options.get("mode", "collocated"), r.options.get("bits", 8)) == (mode, bits)
            and r.network.loss_weight == loss
        }

    def summary(self, mode: str, loss: float | str, bits: int) -> Summary | None:
        """Over all seeds; its change is against the network trained without the loss."""
        wanted = next(iter(self.of(mode, loss, bits).values()), None)
        return next(
            (
                m
                for m in self.section.methods
                if wanted and (m.method, m.options, m.asked_loss) == ("ilwp", wanted.options, loss)
            ),
            None,
        )

    def ratio(self, mode: str, loss: float | str, bits: int, part: str = "depthwise_bytes") -> Estimate | None:
        """Bytes of a mode by those of no prediction in total, of the same seed and bits."""
        found, none = self.of(mode, loss, bits), self.of("none", WITHOUT, bits)
        base = "texture_bytes" if part == "texture_bytes" else "depthwise_bytes"
        ratios = [getattr(r.sizes, part) / getattr(none[s].sizes, base) for s, r in found.items() if s in none]
        return Estimate.of(ratios) if ratios else None

    def shares(self, loss: float | str) -> list[ReferenceShares]:
        """Fig. 2 or 3, of each seed."""
        return [
            ReferenceShares.from_dict(t.analysis["3x3"]["references"]) for t in self.section.trainings.get(loss, ())
        ]

    def distributions(self, loss: float | str) -> list[tuple[Distribution, ...]]:
        """Fig. 7, of each seed: weights and residuals of collocated prediction."""
        found = [t.analysis["3x3"]["distributions"] for t in self.section.trainings.get(loss, ())]
        return [tuple(Distribution.from_dict(d) for d in pair) for pair in found]

    def previous(self, loss: float | str) -> Estimate | None:
        """Share of best references in the layer just before, in per cent."""
        shares = [100 * s.previous_layer_share for s in self.shares(loss) if s.previous_layer_share is not None]
        return Estimate.of(shares) if shares else None

    @property
    def fp32(self) -> float:
        """Accuracy of the network without the loss, in per cent: mean over seeds."""
        return statistics.fmean(t.percent for t in self.section.trainings[WITHOUT])

    @property
    def chance(self) -> float:
        """The same, if every earlier layer were as likely."""
        layers = len(self.shares(WITHOUT)[0].layers)
        return 100 * statistics.fmean(1 / i for i in range(2, layers))

    def saved_bits(self, loss: float | str) -> Estimate | None:
        """By which the Laplace fit of the residuals is below that of the weights, a weight."""
        bits = [w.laplace_entropy_bits - r.laplace_entropy_bits for w, r in self.distributions(loss)]
        return Estimate.of(bits) if bits else None


def load(folder: Path) -> list[Network]:
    """The networks of one folder of results, in the order of `NAMES`; none where there are no results."""
    if not (folder / "results.jsonl").exists():
        return []
    results = read_results(folder)
    found = []
    for section in sections(results):
        one = section.network
        own = [
            r
            for r in results
            if isinstance(r, MethodResult)
            and r.network.model_copy(update={"seed": one.seed, "loss_weight": one.loss_weight}) == one
        ]
        found.append(Network(section, own))
    return sorted(found, key=lambda n: n.order)


# --- text


def number(value: Estimate | None, digits: int = 3) -> str:
    """A mean with the standard deviation over seeds."""
    if value is None:
        return "not yet run"
    return f"{value.mean:.{digits}f}" + ("" if value.deviation is None else f" ± {value.deviation:.{digits}f}")


def points(change: Change | None) -> str:
    """Points of accuracy with their standard error."""
    return "not yet run" if change is None else f"{change.points:+.2f} ± {change.standard_error:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' if i < text else '---:' for i in range(len(head)))} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


Cell = tuple[str, bool | None]
"""What a network shows of a claim, and whether it holds; None where it was not measured."""


def at_a_glance(networks: Sequence[Network]) -> str:
    """Each claim, what the paper has, what each network has, and on how many of them it holds."""
    claims: list[tuple[str, str, Callable[[Network], Cell]]] = [
        ("Fig. 2: the best reference is in the layer just before more often than by chance", "yes", hypothesis),
        ("Fig. 2: it mostly is there", "mostly", lambda n: percent(n.previous(WITHOUT), lambda share: share > 50)),
        ("Fig. 3: with the loss it mostly is", "yes", lambda n: percent(n.previous(WITH), lambda share: share > 50)),
        ("Full search: texture, less than the baseline", "0.965", ratio("full", WITHOUT, "texture_bytes", below=1)),
        ("Full search: total, more than the baseline", "1.124", ratio("full", WITHOUT, "depthwise_bytes", above=1)),
        ("Local search: texture, less than the baseline", "0.960", ratio("local", WITHOUT, "texture_bytes", below=1)),
        ("Local search: total, more than the baseline", "1.082", ratio("local", WITHOUT, "depthwise_bytes", above=1)),
        ("Collocated with the loss: total under 0.6", "0.475", ratio("collocated", WITH, "depthwise_bytes", below=0.6)),
        ("Collocated with the loss: at most a point of accuracy lost", "-0.645", accuracy),
        ("Fig. 5: collocated with the loss is the smallest at every number of bits", "yes", smallest_everywhere),
        ("Fig. 7: residuals have less entropy than weights, with the loss", "yes", lambda n: saved(n, WITH)),
        ("Fig. 7: the same without the loss", "-", lambda n: (saved(n, WITHOUT)[0], None)),
        ("Fig. 7: residuals are nearer to a Laplace distribution than to a normal one", "yes", nearer_to_laplace),
    ]  # fmt: skip
    rows = []
    for text, paper, cell in claims:
        cells = [cell(network) for network in networks]
        known = [holds for _, holds in cells if holds is not None]
        rows.append([text, paper, *(shown for shown, _ in cells), f"{sum(known)} of {len(known)}" if known else "-"])
    return table(["claim", "paper", *(n.name for n in networks), "holds on"], rows)


def percent(share: Estimate | None, holds: Callable[[float], bool]) -> Cell:
    return ("not yet run", None) if share is None else (f"{number(share, 0)} %", holds(share.mean))


def hypothesis(network: Network) -> Cell:
    shown, holds = percent(network.previous(WITHOUT), lambda share: share > network.chance)
    return (shown if holds is None else f"{shown}, chance {network.chance:.0f} %"), holds


def ratio(
    mode: str, loss: float | str, part: str, *, below: float = np.inf, above: float = 0
) -> Callable[[Network], Cell]:
    def cell(network: Network) -> Cell:
        found = network.ratio(mode, loss, 8, part)
        return number(found), None if found is None else above < found.mean < below

    return cell


def accuracy(network: Network) -> Cell:
    found = network.summary("collocated", WITH, 8)
    return ("not yet run", None) if found is None else (points(found.change), found.change.points >= -1)


def smallest_everywhere(network: Network) -> Cell:
    """The range over bits of its bytes to those of the smallest other mode; of bits at which both were measured."""
    found = []
    for bits in BITS:
        own = network.ratio("collocated", WITH, bits)
        others = [r.mean for _, mode, loss in CURVES[:-1] if (r := network.ratio(mode, loss, bits)) is not None]
        if own is not None and others:
            found.append(own.mean / min(others))
    return (f"{min(found):.2f} to {max(found):.2f} of the next", max(found) < 1) if found else ("not yet run", None)


def saved(network: Network, loss: float | str) -> Cell:
    found = network.saved_bits(loss)
    return ("not yet run", None) if found is None else (f"{number(found, 2)} bits", found.mean > 0)


def nearer_to_laplace(network: Network) -> Cell:
    """Divergence of the histograms of residuals from both, of networks trained with the loss."""
    found = []
    for _, residuals in network.distributions(WITH):
        edges, density = np.array(residuals.edges), np.array(residuals.density)
        mass = density * np.diff(edges)
        mass /= mass.sum()
        centres = (edges[1:] + edges[:-1]) / 2
        fits = (laplace(scale=mass @ np.abs(centres)), norm(scale=np.sqrt(mass @ centres**2)))
        entropy = mass @ np.log2(np.where(mass > 0, density, 1.0))
        found.append([entropy - mass @ fit.logpdf(centres) / np.log(2) for fit in fits])
    if not found:
        return "not yet run", None
    to_laplace, to_normal = np.mean(found, axis=0)
    return f"{to_laplace:.2f} against {to_normal:.2f} bits", bool(to_laplace < to_normal)


def table_1(networks: Sequence[Network]) -> str:
    base = PAPER["baseline"]
    paper = [
        [f"the paper, {name}", f"{t:.3f} KB", f"{n:.3f} KB" if n else "-", f"{total:.3f} KB", f"{t / base[0]:.3f}",
         f"{total / base[2]:.3f}", f"{accuracy - base[3]:+.3f}"]
        for name, (t, n, total, accuracy) in PAPER.items()
    ]  # fmt: skip
    rows = [*paper]
    more = (("ILWP-ILL without the loss", "collocated", WITHOUT), ("baseline with the loss", "none", WITH))
    for network in networks:
        for name, mode, loss in (*ROWS, *more):
            m = network.summary(mode, loss, 8)
            if m is None or m.depthwise is None or m.texture is None or m.non_texture is None:
                rows.append([f"{network.name}, {name}", *["not yet run"] * 6])
                continue
            texture = network.ratio(mode, loss, 8, "texture_bytes")
            rows.append(
                [
                    f"{network.name}, {name}" + (f", weight {m.loss_weight:.3g}" if loss == WITH else ""),
                    f"{m.texture.mean:,.0f} B",
                    f"{m.non_texture.mean:,.0f} B" if m.non_texture.mean else "-",
                    f"{m.depthwise.mean:,.0f} B",
                    number(texture),
                    number(network.ratio(mode, loss, 8)),
                    points(m.change),
                ]
            )
    head = (
        "method, 8 bits",
        "texture",
        "non-texture",
        "total",
        "texture / baseline",
        "total / baseline",
        "accuracy, points",
    )
    return table(head, rows)


def smallest(networks: Sequence[Network]) -> str:
    """Fig. 6 in numbers: the fewest bytes within some points of fp32, without prediction and in any other way."""
    rows = []
    for network in networks:
        cells = [network.name]
        for most in (0.5, 1.0, 2.0):
            for curves in (CURVES[:1], CURVES[1:]):
                found = [
                    (m.depthwise.mean, bits, label)
                    for label, mode, loss in curves
                    for bits in BITS
                    if (m := network.summary(mode, loss, bits)) is not None and m.depthwise is not None
                    if m.change.points >= -most
                ]
                if not all(any(network.of(mode, loss, bits) for bits in BITS) for _, mode, loss in curves):
                    cells.append("not yet run")
                    continue
                if not found:
                    cells.append("none")
                    continue
                size, bits, label = min(found)
                how = "" if curves == CURVES[:1] else f"{label}, "
                cells.append(f"{size / 1000:.2f} kB ({how}{bits} bits)")
        rows.append(cells)
    head = [
        "network",
        *(f"{how}, {most} points" for most in (0.5, 1, 2) for how in ("no prediction", "with prediction")),
    ]
    return table(head, rows)


def lengths(digits: Sequence[Network]) -> str:
    """The paper's 200 epochs on digits: the automatic weight beside the paper's."""
    rows = [["the paper, weight 1 (CIFAR-10)", "5", "0.475", "-0.65", "-", "-", "-"]]
    for network in digits:
        for label, mode, loss in (
            *CURVES[1:4],
            ("collocated, automatic weight", "collocated", WITH),
            ("collocated, weight 1", "collocated", 1.0),
        ):
            m = network.summary(mode, loss, 8)
            if m is None:
                rows.append([label, "0", *["not yet run"] * 5])
                continue
            shown = f"{label} ({m.loss_weight:.3g})" if loss == WITH else label
            change = f"{m.change.points:+.2f} ± {m.change.standard_error:.2f}"
            ratios = [number(network.ratio(mode, loss, bits)) for bits in (8, 6, 4)]
            saved = number(network.saved_bits(loss), 2) if mode == "collocated" else "-"
            rows.append([shown, str(len(m.seeds)), ratios[0], change, ratios[1], ratios[2], saved])
    head = (
        "MobileNet x0.25, 200 epochs",
        "seeds",
        "total / baseline, 8 bits",
        "accuracy, points",
        "6 bits",
        "4 bits",
        "Fig. 7: bits saved",
    )
    return table(head, rows)


def dense(networks: Sequence[Network]) -> str:
    """All k x k convolutions."""
    rows = []
    for network in networks:
        for label, mode, loss in (*CURVES, ("no prediction, with the loss", "none", WITH)):
            m = network.summary(mode, loss, 8)
            cells = [f"{network.name}, {label}" + (f" ({m.loss_weight:,.0f})" if m and loss == WITH else "")]
            for bits in (8, 6, 4):
                m = network.summary(mode, loss, bits)
                cells += (
                    ["not yet run"] * 2 if m is None else [number(network.ratio(mode, loss, bits)), points(m.change)]
                )
            cells.append(number(network.saved_bits(loss), 2) if mode == "collocated" else "-")
            rows.append(cells)
    head = [
        "network, mode",
        *(cell for bits in (8, 6, 4) for cell in (f"total / no prediction, {bits} bits", "points")),
        "Fig. 7: bits saved",
    ]
    return table(head, rows)


def swept(networks: Sequence[Network]) -> Network | None:
    """The network that was trained with several weights."""
    return next((n for n in networks if len(n.section.trainings) > 2), None)


def weights(networks: Sequence[Network]) -> str:
    """Fig. 4 in numbers."""
    network = swept(networks)
    if network is None:
        return "Not yet run."
    rows = []
    for asked, trained in sorted(network.section.trainings.items(), key=lambda item: item[1][0].loss_weight):
        cells = [f"{trained[0].loss_weight:.3g}{' (automatic)' if asked == WITH else ''}", str(len(trained))]
        for bits in (8, 6, 4):
            m = network.summary("collocated", asked, bits)
            cells += [number(network.ratio("collocated", asked, bits)), points(m.change if m else None)]
        rows.append([*cells, number(network.previous(asked), 0)])
    sizes = [cell for bits in (8, 6, 4) for cell in (f"total / baseline, {bits} bits", "points")]
    head = [f"weight, {network.name}", "seeds", *sizes, "references in the layer before, %"]
    return f"![Size and accuracy against the weight of the loss](figures/paper_figure_4.png)\n\n{table(head, rows)}"


def missing(preset: str, networks: Sequence[Network]) -> str:
    """How much of a preset has run, and which seeds of which trainings lack results."""
    tasks = CompareConfig.from_file(ROOT / "examples" / "compare" / f"{preset}.json").tasks()
    done = {r.key for n in networks for r in n.results}
    done |= {t.key for n in networks for found in n.section.trainings.values() for t in found}
    left: dict[str, set[int]] = {}
    for task in tasks:
        if task.key not in done:
            loss = task.network.loss_weight
            how = "without the loss" if loss == 0 else "with the loss" if loss == WITH else f"weight {loss:g}"
            left.setdefault(f"{NAMES[task.network.model]} {how}", set()).add(task.network.seed)
    count = sum(task.key in done for task in tasks)
    seeds = ", ".join(f"{n.name} {len(n.section.seeds)}" for n in networks)
    text = f"`{preset}.json`: {count} of {len(tasks)} results; seeds: {seeds or 'none'}."
    if left:
        lists = [f"{what} (seed {', '.join(map(str, sorted(seeds)))})" for what, seeds in left.items()]
        text += f" Not yet run, or in part: {'; '.join(lists)}."
    return text


# --- figures

COLOURS = dict(
    zip((label for label, _, _ in CURVES), (PALETTE[0], PALETTE[6], PALETTE[2], PALETTE[1], PALETTE[4]), strict=True)
)
MARKERS = dict(zip(COLOURS, "oD^sP", strict=True))
TITLES = {WITHOUT: "without the loss", WITH: "with the loss"}


def draw_references(networks: Sequence[Network], target: Path) -> None:
    """Fig. 2 above, Fig. 3 beneath: means over seeds."""
    with drawing(target, 3.1, 3.2, 2 * len(networks), len(networks)) as (figure, axes):
        for axis, (loss, network) in zip(axes, ((w, n) for w in (WITHOUT, WITH) for n in networks), strict=True):
            maps = [s.shares for s in network.shares(loss)]
            axis.set_title(f"{network.name}\n{TITLES[loss]}")
            if not maps:
                axis.text(0.5, 0.5, "not yet run", ha="center", va="center", transform=axis.transAxes)
                axis.axis("off")
                continue
            mean = 100 * np.mean(maps, axis=0)
            mean[np.triu_indices(len(mean))] = np.nan
            image = axis.imshow(mean, cmap="viridis", vmin=0, vmax=100)
            axis.set_xlabel("source layer")
            axis.set_ylabel("target layer")
            ticks = range(0, len(mean), 4)
            axis.set_xticks(ticks, [str(i + 1) for i in ticks])
            axis.set_yticks(ticks, [str(i + 1) for i in ticks])
        figure.colorbar(image, ax=axes, label="share of best references (least L1), %", shrink=0.6)


def draw_weights(network: Network | None, target: Path) -> None:
    """Fig. 4; nothing where there is none yet."""
    if network is None:
        return
    chosen = {trained[0].loss_weight: asked for asked, trained in network.section.trainings.items()}
    with drawing(target, 5.2, 4.2, 2) as (figure, axes):
        for i, bits in enumerate(BITS):
            summaries = (network.summary("collocated", chosen[weight], bits) for weight in sorted(chosen))
            found = [m for m in summaries if m is not None and m.depthwise is not None]
            xs = [m.loss_weight for m in found]
            style = {"marker": "o", "capsize": 3, "color": (0.85 * i / len(BITS),) * 3, "label": f"{bits} bits"}
            sizes, accuracies = [kilobytes(m.depthwise) for m in found], [m.accuracy for m in found]
            for axis, ys in zip(axes, (sizes, accuracies), strict=True):
                axis.errorbar(xs, [y.mean for y in ys], [y.deviation or 0 for y in ys], **style)
        for axis in axes:
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xticks(sorted(chosen), [f"{weight:.3g}" for weight in sorted(chosen)])
            axis.minorticks_off()
            axis.set_xlabel("weight of the inter-layer loss")
            axis.grid(True, color="#dddddd", linewidth=0.6)
        axes[0].set_ylabel("depthwise layers, kB")
        axes[0].set_ylim(bottom=0)
        axes[1].set_ylabel("accuracy of the restored model, %")
        axes[1].set_ylim(network.fp32 - 10, network.fp32 + 1)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(BITS), frameon=False)


def draw_curves(networks: Sequence[Network], target: Path, x: str) -> None:
    """Fig. 5 (x: bits) and Fig. 6 (x: size)."""
    with drawing(target, 5.0, 3.8, len(networks), 2) as (figure, axes):
        for axis in axes[len(networks) :]:
            axis.axis("off")
        for axis, network in zip(axes, networks, strict=False):
            for label, mode, loss in CURVES:
                summaries = ((bits, network.summary(mode, loss, bits)) for bits in reversed(BITS))
                found = [(bits, m) for bits, m in summaries if m is not None and m.depthwise is not None]
                sizes, accuracies = [kilobytes(m.depthwise) for _, m in found], [m.accuracy for _, m in found]
                xs, ys = ([Estimate(bits) for bits, _ in found], sizes) if x == "bits" else (sizes, accuracies)
                axis.errorbar(
                    [value.mean for value in xs],
                    [value.mean for value in ys],
                    [value.deviation or 0 for value in ys],
                    [value.deviation or 0 for value in xs],
                    label=label,
                    color=COLOURS[label],
                    marker=MARKERS[label],
                    markersize=5,
                    capsize=3,
                )
            count = len(network.section.seeds)
            axis.set_title(f"{network.name}, {count} seed{'s' if count > 1 else ''}")
            axis.grid(True, color="#dddddd", linewidth=0.6)
            axis.set_xlabel("bits of a code" if x == "bits" else "depthwise layers, kB")
            axis.set_ylabel("depthwise layers, kB" if x == "bits" else "accuracy of the restored model, %")
            if x == "bits":
                axis.set_ylim(bottom=0)
            else:
                axis.axhline(network.fp32, color="#222222", linewidth=1, linestyle=":")
                axis.set_ylim(network.fp32 - 6, network.fp32 + 1)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)


def draw_histograms(networks: Sequence[Network], target: Path) -> None:
    """Fig. 7, of the first seed."""
    panels = {
        f"{network.name}, {TITLES[loss]}": pairs[0]
        for network in networks
        for loss in (WITHOUT, WITH)
        if (pairs := network.distributions(loss))
    }
    draw_distributions(panels, target, columns=2)


def kilobytes(value: Estimate) -> Estimate:
    return Estimate(value.mean / 1000, None if value.deviation is None else value.deviation / 1000)


# --- the page


def parts(figures: Sequence[Network], digits: Sequence[Network], conv: Sequence[Network]) -> dict[str, str]:
    """What goes between markers, by name."""
    results = dict(zip(RESULTS, (figures, digits, conv), strict=True))
    made = [r for networks in results.values() for n in networks for r in n.results]
    versions = sorted({f"{name} {version}" for r in made for name, version in r.versions.items()})
    return {
        "state": "\n".join(f"- {missing(name, found)}" for name, found in results.items()),
        "versions": f"Versions: {', '.join(versions)}.",
        "glance": at_a_glance([*figures, *digits]),
        "table 1": table_1([*figures, *digits]),
        "figure 4": weights(figures),
        "figure 6": smallest(figures),
        "length": lengths(digits),
        "conv": dense(conv),
    }


def fill(text: str, found: dict[str, str]) -> str:
    """The page with its parts made anew."""
    for name, part in found.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert begin and end, f"the page has no part {name!r}"
        text = f"{before}{begin}{part}\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    figures, digits, conv = (load(options.results / name) for name in RESULTS)
    pictures = options.out / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    (options.out / "paper.md").write_text(fill(text, parts(figures, digits, conv)), encoding="utf-8")
    draw_references([*figures, *digits], pictures / "paper_figure_2_3.png")
    draw_weights(swept(figures), pictures / "paper_figure_4.png")
    draw_curves(figures, pictures / "paper_figure_5.png", "bits")
    draw_curves(figures, pictures / "paper_figure_6.png", "size")
    draw_histograms([*figures, *digits], pictures / "paper_figure_7.png")


if __name__ == "__main__":
    main()
