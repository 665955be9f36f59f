"""What the figures show, as numbers and a sentence each; nothing is drawn here.

A sentence is computed from the data alone, and comes out for or against ilwp as these are.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ilwp_plugin.analysis import Distribution, ReferenceShares
from ilwp_plugin.compare.report.summary import Estimate, Section, Summary, pareto_front
from ilwp_plugin.compare.report.text import change_text, fraction, judgement, of_method, plural, share, size

__all__ = [
    "Bar",
    "Bars",
    "Chart",
    "Figure",
    "Heatmap",
    "Histograms",
    "Missing",
    "Panel",
    "Point",
    "Series",
    "figures",
    "headline",
    "ilwp_curves",
]

BITS = 8
"""Of the paper's Table 1, and of what sentences speak of where there is a choice."""

_MOST_BITS = 32
"""Of a code."""


@dataclass(frozen=True)
class Bar:
    """The smallest file of a kind of methods that keeps the accuracy of fp32; where none does, the most accurate."""

    label: str
    method: Summary


@dataclass(frozen=True)
class Bars:
    """Sorted by bytes, the largest first."""

    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Heatmap:
    """Fig. 2 or 3: mean shares over seeds."""

    title: str
    shares: ReferenceShares


@dataclass(frozen=True)
class Histograms:
    """Fig. 7: of one seed, by title."""

    panels: Mapping[str, tuple[Distribution, Distribution]]


@dataclass(frozen=True)
class Point:
    """A method in a chart; x and y as the axes say."""

    x: Estimate
    y: Estimate
    label: str


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        owner: whose they are: "ilwp", "no toolkit", a toolkit, or a toolkit "+ ilwp".
        joined: whether a line goes through them.
    """

    label: str
    owner: str
    points: tuple[Point, ...]
    joined: bool


@dataclass(frozen=True)
class Chart:
    """Series over two axes.

    Attributes:
        x, y: labels of the axes, with units.
        x_scale: linear, log, or weight: a logarithmic scale that has a place for 0.
        front: points that no other beats in both; lines between them are drawn, and their labels are listed.
        ordered: whether the series are steps of one quantity.
    """

    series: tuple[Series, ...]
    x: str
    y: str
    x_scale: str = "linear"
    front: tuple[Point, ...] = ()
    ordered: bool = False


Panel = Bars | Heatmap | Histograms | Chart


@dataclass(frozen=True)
class Figure:
    """A figure of the report: one picture for each panel.

    Attributes:
        name: for files.
        sentence: what it shows.
        more: further sentences.
    """

    name: str
    title: str
    sentence: str
    panels: tuple[Panel, ...]
    more: str = ""


@dataclass(frozen=True)
class Missing:
    """A figure or table that the results have no data for, and what the configuration would need."""

    title: str
    needs: str


def headline(section: Section) -> Figure | Missing:
    """What ilwp would save: fp32, the best without ilwp, and the best with it."""
    title = f"What ilwp would save on {section.name}"
    by_owner: dict[str, list[Summary]] = {}
    for method in section.methods:
        if method.kind != "fp32":
            by_owner.setdefault(method.owner, []).append(method)
    bars = [Bar(owner, _best(found)) for owner, found in by_owner.items()]
    if section.fp32 is not None:
        bars.append(Bar("fp32", section.fp32))
    if not bars:
        return Missing(title, 'methods, {"method": "fp32"} first of all')
    bars.sort(key=lambda bar: (-bar.method.file.mean, bar.label))
    sentence, *more = _headline_sentences(section, bars)
    return Figure("headline", title, sentence, (Bars(tuple(bars)),), " ".join(more))


def _best(methods: Sequence[Summary]) -> Summary:
    fitting = [m for m in methods if m.change.fits]
    if fitting:
        return min(fitting, key=lambda m: (m.file.mean, -m.change.points, m.title))
    return min(methods, key=lambda m: (-m.change.points, m.file.mean, m.title))


def _headline_sentences(section: Section, bars: Sequence[Bar]) -> list[str]:
    ours = [b.method for b in bars if b.method.kind in ("ilwp", "stacked")]
    others = [b for b in bars if b.method.kind in ("baseline", "toolkit") and b.method.change.fits]
    parts = []
    other = min((b.method for b in others), key=lambda m: m.file.mean, default=section.fp32)
    if not ours:
        parts.append("No method with ilwp was measured here.")
    elif not (own := _best(ours)).change.fits:
        parts.append(
            f"ilwp would save nothing here at the accuracy of fp32: no method with it keeps that; the nearest takes "
            f"{_described(own)}."
        )
    elif other is None:
        parts.append(f"ilwp's smallest file is {_described(own)}; nothing without ilwp was measured to compare with.")
    else:
        ratio = own.file.mean / other.file.mean
        sizes = f"{size(own.file.mean)} instead of {size(other.file.mean)}"
        if ratio < 0.995:
            saves = f"ilwp would save {share(1 - ratio)} of the smallest file without it: {sizes}"
        elif ratio <= 1.005:
            saves = f"ilwp would save nothing here; its smallest file is as large as the smallest without it: {sizes}"
        else:
            larger = f"{ratio:.3g} times as large" if ratio >= 2 else f"{share(ratio - 1)} larger"
            saves = f"ilwp would save nothing here; its smallest file is {larger}: {sizes}"
        if own.ratio is not None:
            saves += f", {fraction(own.ratio.mean)} of fp32"
        parts += [f"{saves}.", f"That compares {_described(own)} with {_described(other)}."]
        if section.fp32 is not None:
            parts.append(f"The accuracy of fp32 is {section.fp32.accuracy.mean:.2f} %.")
        against = [
            f"{b.label} ({size(b.method.file.mean)}) it is {_less(own.file.mean / b.method.file.mean)}"
            for b in sorted(others, key=lambda b: b.label.casefold())
            if b.method.kind == "toolkit" and b.method is not other
        ]
        if against:
            parts.append(f"Against the best of {', of '.join(against)}.")
    for bar in sorted(bars, key=lambda b: b.label.casefold()):
        alone = _alone(section, bar.method) if bar.method.kind == "stacked" else None
        if alone is not None:
            ratio = bar.method.file.mean / alone.file.mean
            effect = (
                f"saves {share(1 - ratio)}"
                if ratio < 0.995
                else f"adds {share(ratio - 1)}"
                if ratio > 1.005
                else "saves nothing"
            )
            parts.append(
                f"On top of {of_method(alone)} it {effect}: {size(alone.file.mean)} ({judgement(alone.change)}) become "
                f"{size(bar.method.file.mean)} ({judgement(bar.method.change)})."
            )
    unfit = [b for b in bars if b.method.kind in ("baseline", "toolkit") and not b.method.change.fits]
    for bar in sorted(unfit, key=lambda b: b.label):
        parts.append(
            f"No method of {bar.label} keeps the accuracy of fp32; the nearest takes {size(bar.method.file.mean)} at "
            f"{change_text(bar.method.change)}."
        )
    return parts


def _alone(section: Section, stacked: Summary) -> Summary | None:
    """The method that ilwp is on top of: the same one with the same options but for those of ilwp."""

    def stripped(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: stripped(v) for name, v in value.items() if name != "ilwp"}
        if isinstance(value, list | tuple):
            return [stripped(v) for v in value if not (isinstance(v, Mapping) and "ilwp" in v.values())]
        return value

    wanted = (stacked.method, stacked.asked_loss, stripped(stacked.options))
    return next((m for m in section.methods if (m.method, m.asked_loss, m.options) == wanted), None)


def _less(ratio: float) -> str:
    """By how much something is less or more.

    >>> _less(0.57), _less(1.12), _less(1.001)
    ('43 % less', '12 % more', 'the same')
    """
    if ratio >= 2:
        return f"{ratio:.3g} times as much"
    if ratio < 0.995:
        return f"{share(1 - ratio)} less"
    return f"{share(ratio - 1)} more" if ratio > 1.005 else "the same"


def _described(method: Summary) -> str:
    return f"{size(method.file.mean)} ({of_method(method)}; {change_text(method.change)})"


def figures(section: Section) -> list[Figure | Missing]:
    """Those of the paper, in its order."""
    return [
        *_references(section),
        _loss_weight(section),
        _bits(section),
        *_trade_offs(section),
        *_distributions(section),
    ]


# --- Fig. 2, 3 and 7: the trained networks


def _analyses(section: Section, kind: str) -> dict[str, dict[bool, list[Any]]]:
    """By kernel size and whether the network was trained with the loss, those of all seeds."""
    found: dict[str, dict[bool, list[Any]]] = {}
    for weight in (0, section.loss):
        for training in section.trainings.get(weight, ()) if weight is not None else ():
            for kernel, analysis in training.analysis.items():
                if kind in analysis:
                    found.setdefault(kernel, {}).setdefault(weight != 0, []).append(analysis[kind])
    return {kernel: found[kernel] for kernel in sorted(found)}


_WITH = {False: "without the inter-layer loss", True: "with the inter-layer loss"}
_NEEDS = {
    False: 'a training without the loss: a line with "loss_weight": [0]',
    True: 'a training with the loss: a line with "loss_weight": [0, "auto"]',
}


def _references(section: Section) -> list[Figure | Missing]:
    result: list[Figure | Missing] = []
    found = _analyses(section, "references")
    if not found:
        return [Missing("Fig. 2 and 3: where the best references are", "a network with a chain of depthwise layers")]
    for kernel, by_loss in found.items():
        panels, shares = [], {}
        for with_loss, dictionaries in sorted(by_loss.items()):
            mean = _mean_shares([ReferenceShares.from_dict(d) for d in dictionaries])
            panels.append(Heatmap(_WITH[with_loss], mean))
            shares[with_loss] = mean.previous_layer_share
        title = f"Fig. 2 and 3: where the best references are, {kernel} kernels"
        sentence = _reference_sentence(shares, panels[0].shares)
        result.append(Figure(f"figure_2_3_{kernel}", title, sentence, tuple(panels)))
    absent = [with_loss for with_loss in (False, True) if not any(with_loss in d for d in found.values())]
    result += [Missing(f"Fig. {3 if w else 2}: the same {_WITH[w]}", _NEEDS[w]) for w in absent]
    return result


def _mean_shares(maps: Sequence[ReferenceShares]) -> ReferenceShares:
    mean = np.mean([m.shares for m in maps if m.layers == maps[0].layers], axis=0)  # one architecture has one chain
    return ReferenceShares(maps[0].kernel_size, maps[0].layers, tuple(tuple(row) for row in mean.tolist()))


def _reference_sentence(shares: Mapping[bool, float | None], example: ReferenceShares) -> str:
    known = {w: s for w, s in shares.items() if s is not None}
    if not known:
        return "This chain has two layers only, so the best reference of the second is always in the first."
    parts = [f"{share(s)} {_WITH[w]}" for w, s in known.items()]
    n = len(example.layers)
    chance = statistics.fmean(1 / i for i in range(2, n))
    sentence = (
        f"Of the best references {' and '.join(parts)} are in the layer just before; if every earlier layer were as "
        f"likely, it would be {share(chance)}."
    )
    first = next(iter(known.values()))
    sentence += (
        " Already without the loss that is more than chance, as the paper's hypothesis says."
        if False in known and first > chance
        else " Without the loss that is no more than chance: the paper's hypothesis does not hold here."
        if False in known
        else ""
    )
    if len(known) == 2:
        effect = "raises" if known[True] > known[False] else "does not raise"
        sentence += f" The loss {effect} it."
    return sentence


def _distributions(section: Section) -> list[Figure | Missing]:
    result: list[Figure | Missing] = []
    found = _analyses(section, "distributions")
    if not found:
        return [
            Missing("Fig. 7: how weights and residuals are distributed", "a network with a chain of depthwise layers")
        ]
    for kernel, by_loss in found.items():
        panels, parts = {}, []
        for with_loss, seeds in sorted(by_loss.items()):
            pairs = [(Distribution.from_dict(w), Distribution.from_dict(r)) for w, r in seeds]
            panels[_WITH[with_loss]] = pairs[0]
            bits = [[d.laplace_entropy_bits for d in kind] for kind in zip(*pairs, strict=True)]
            parts.append(_entropy_sentence(_WITH[with_loss], *(statistics.fmean(b) for b in bits)))
        title = f"Fig. 7: how weights and residuals are distributed, {kernel} kernels"
        result.append(Figure(f"figure_7_{kernel}", title, " ".join(parts), (Histograms(panels),)))
    absent = [with_loss for with_loss in (False, True) if not any(with_loss in d for d in found.values())]
    result += [Missing(f"Fig. 7 {_WITH[w]}", _NEEDS[w]) for w in absent]
    return result


def _entropy_sentence(when: str, weights: float, residuals: float) -> str:
    if not np.isfinite([weights, residuals]).all():
        return f"{when.capitalize()} all residuals or all weights are 0."
    saved = weights - residuals
    effect = (
        f"saves {saved:.2f} bits a weight"
        if saved >= 0.005
        else f"costs {-saved:.2f} bits a weight"
        if saved <= -0.005
        else "changes nothing"
    )
    return (
        f"{when.capitalize()}, predicting a kernel from the collocated one {effect} at the same step: the Laplace fit "
        f"has {weights:.2f} bits for the weights and {residuals:.2f} for the residuals."
    )


# --- Fig. 4, 5 and 6: methods


def _configuration(method: Summary) -> dict[str, Any]:
    """Options of a method of ilwp but for mode and bits, and the scope, which is that of the section."""
    return {name: value for name, value in method.options.items() if name not in ("mode", "bits", "scope")}


def mode_of(method: Summary) -> str:
    """The prediction mode of a method of ilwp; the default is not in its options."""
    return str(method.options.get("mode", "collocated"))


def bits_of(method: Summary) -> int | None:
    """The bits of a method of ilwp; None where an absolute step takes their place, or nothing is quantized."""
    bits = method.options.get("bits", BITS)
    known = isinstance(bits, int) and 0 < bits <= _MOST_BITS
    return bits if known and method.options.get("residual_step") is None else None


def paper_methods(section: Section) -> list[Summary]:
    """Those of the paper: the method "ilwp" with mode and bits alone, in its coder where the results have it."""
    by_coder: dict[str, list[Summary]] = {}
    for method in section.methods:
        rest = _configuration(method)
        coder = str(rest.pop("coder", "auto"))
        if method.kind == "ilwp" and method.method == "ilwp" and not rest and bits_of(method) is not None:
            by_coder.setdefault(coder, []).append(method)
    return max(
        by_coder.values(), key=lambda found: (len(found), found[0].options.get("coder") == "huffman"), default=[]
    )


def _loss_weight(section: Section) -> Figure | Missing:
    title = "Fig. 4: the weight of the loss against size and accuracy"
    methods = [m for m in paper_methods(section) if mode_of(m) == "collocated" and m.depthwise is not None]
    by_bits: dict[int, list[Summary]] = {}
    for method in methods:
        by_bits.setdefault(bits_of(method) or 0, []).append(method)
    by_bits = {
        bits: sorted(found, key=lambda m: (m.loss_weight, m.title))
        for bits, found in sorted(by_bits.items(), reverse=True)
        if len({m.loss_weight for m in found}) > 1
    }
    if not by_bits:
        return Missing(title, 'several weights: {"method": "ilwp", "loss_weight": [0, 1, 10, "auto"]}')

    def chart(y: str, value: Callable[[Summary], Estimate | None]) -> Chart:
        series = [
            Series(plural(bits, "bit"), "ilwp", _points(found, lambda m: Estimate(m.loss_weight), value), True)
            for bits, found in by_bits.items()
        ]
        return Chart(tuple(series), "weight of the inter-layer loss", y, "weight", ordered=True)

    panels = (
        chart(f"{section.layers}, kB", lambda m: _kilobytes(m.depthwise)),
        chart("accuracy, %", lambda m: m.accuracy),
    )
    bits = BITS if BITS in by_bits else next(iter(by_bits))
    first, *others = by_bits[bits]
    best = min(others, key=lambda m: (_mean(m.depthwise), m.title))
    ratio = _mean(best.depthwise) / _mean(first.depthwise)
    sentence = (
        f"At {plural(bits, 'bit')} a loss of weight {best.loss_weight:.3g} makes the {section.layers} "
        f"{size(_mean(best.depthwise))} instead of {size(_mean(first.depthwise))} at weight {first.loss_weight:.3g}, "
        f"{_less(ratio)}; the accuracy of the restored model is {best.accuracy.mean:.2f} % instead of "
        f"{first.accuracy.mean:.2f} %. Against fp32 without the loss that is {change_text(best.change)}."
    )
    return Figure("figure_4", title, sentence, panels)


def ilwp_curves(section: Section) -> list[Series]:
    """Methods of ilwp over bits, a curve for each mode; of those with the loss the weight that stands for all.

    None where no curve has more than one point.

    Points have bits for x and bytes of the section's layers for y.
    """
    return [
        Series(label, "ilwp", _points(found, _bits_estimate, _depthwise), True) for label, found in _curves(section)
    ]


def _curves(section: Section) -> list[tuple[str, list[Summary]]]:
    found: dict[str, list[Summary]] = {}
    paper = paper_methods(section)
    for method in section.methods:
        rest = _configuration(method)
        coder = rest.pop("coder", None)
        other_coder = not rest and method.method == "ilwp" and method not in paper
        if method.kind != "ilwp" or bits_of(method) is None or method.depthwise is None or other_coder:
            continue
        if method.asked_loss not in (0, section.loss):
            continue
        words = []
        if method.method != "ilwp":
            words.append(method.method.replace("_", " "))
        for name, value in sorted({**rest, **({"coder": coder} if coder and rest else {})}.items()):
            words.append({"align": "aligned"}.get(name, f"{name.replace('_', ' ')} {value}"))
        if method.asked_loss != 0:
            words.append("with the loss")
        label = "no prediction" if mode_of(method) == "none" else mode_of(method)
        found.setdefault(f"{label} ({', '.join(words)})" if words else label, []).append(method)
    order = ("none", "local", "full", "collocated")
    curves = [(label, sorted(ms, key=lambda m: bits_of(m) or 0)) for label, ms in found.items()]
    if all(len({bits_of(m) for m in ms}) < 2 for _, ms in curves):
        return []
    return sorted(curves, key=lambda c: (order.index(m) if (m := mode_of(c[1][0])) in order else len(order), c[0]))


def _bits(section: Section) -> Figure | Missing:
    title = "Fig. 5: size against bits"
    curves = _curves(section)
    if not curves:
        return Missing(
            title, 'several bits: {"method": "ilwp", "grid": {"mode": ["none", "collocated"], "bits": [2, 4, 8]}}'
        )
    series = [
        Series(label, "ilwp", _points(found, _bits_estimate, lambda m: _kilobytes(m.depthwise)), True)
        for label, found in curves
    ]
    chart = Chart(tuple(series), "bits of a residual code", f"{section.layers}, kB")
    return Figure("figure_5", title, _bits_sentence(curves, section.layers), (chart,))


def _bits_sentence(curves: Sequence[tuple[str, list[Summary]]], layers: str) -> str:
    by_label = {label: {bits_of(m) or 0: _mean(m.depthwise) for m in found} for label, found in curves}
    if "no prediction" not in by_label:
        smallest = min(by_label, key=lambda label: (min(by_label[label].values()), label))
        return f"The smallest {layers}, {size(min(by_label[smallest].values()))}, are those of {smallest}."
    none = by_label.pop("no prediction")
    parts = []
    for label, sizes in by_label.items():
        common = sorted(set(sizes) & set(none))
        if not common:
            continue
        ratios = [sizes[b] / none[b] for b in common]
        low, high = min(ratios), max(ratios)
        between = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
        smaller = sum(r < 0.995 for r in ratios)
        verdict = (
            "always smaller"
            if high < 0.995
            else "always larger"
            if low > 1.005
            else "the same"
            if low >= 0.995 and high <= 1.005
            else f"smaller at {smaller or 'none'} of {plural(len(ratios), 'number')} of bits"
        )
        parts.append(f"{label} takes {between} of its bytes ({verdict})")
    if not parts:
        return "No prediction mode was measured at the same bits as no prediction."
    return "Against no prediction at the same bits: " + "; ".join(parts) + "."


def _trade_offs(section: Section) -> list[Figure | Missing]:
    whole = "Fig. 6: accuracy against size, whole files"
    layers = f"Fig. 6: accuracy against size, {section.layers}"
    result: list[Figure | Missing] = []
    methods = list(section.methods)
    if len(methods) < 2:
        return [Missing(whole, "two methods or more")]
    by_owner: dict[str, list[Summary]] = {}
    for method in methods:
        by_owner.setdefault("no toolkit" if method.kind == "fp32" else method.owner, []).append(method)
    series = [Series(owner, owner, _points(ms, _file_kilobytes, _accuracy), False) for owner, ms in by_owner.items()]
    front = [methods[i] for i in pareto_front([(m.file.mean, m.accuracy.mean) for m in methods])]
    points = _points(front, _file_kilobytes, _accuracy)
    chart = Chart(tuple(series), "file, kB", "accuracy of the restored model, %", "log", points)
    result.append(Figure("figure_6_files", whole, _front_sentence(methods, front), (chart,)))

    curves = _curves(section)
    if not curves:
        needs = 'several bits: {"method": "ilwp", "grid": {"mode": ["none", "collocated"], "bits": [2, 4, 8]}}'
        return [*result, Missing(layers, needs)]
    known = [m for _, found in curves for m in found]
    series = [
        Series(label, "ilwp", _points(found, lambda m: _kilobytes(m.depthwise), _accuracy), True)
        for label, found in curves
    ]
    front = [known[i] for i in pareto_front([(_mean(m.depthwise), m.accuracy.mean) for m in known])]
    points = _points(front, lambda m: _kilobytes(m.depthwise), _accuracy)
    chart = Chart(tuple(series), f"{section.layers}, kB", "accuracy of the restored model, %", "log", points)
    sentence = _curve_sentence(curves, front, section.layers)
    return [*result, Figure("figure_6_layers", layers, sentence, (chart,))]


def _front_sentence(methods: Sequence[Summary], front: Sequence[Summary]) -> str:
    """Who is on the Pareto front of whole files."""
    owners: dict[str, int] = {}
    for method in front:
        owners[method.owner] = owners.get(method.owner, 0) + 1
    counts = ", ".join(f"{count} of {owner}" for owner, count in sorted(owners.items(), key=lambda o: (-o[1], o[0])))
    absent = sorted({m.owner for m in methods} - set(owners), key=str.casefold)
    sentence = (
        f"Of {plural(len(methods), 'method')} {len(front)} {'is' if len(front) == 1 else 'are'} on the Pareto front, "
        f"that is, no other has a file as small and is as accurate: {counts}."
    )
    if absent:
        sentence += f" None is of {', '.join(absent)}."
    if not any("ilwp" in method.owner for method in front):
        sentence += " ilwp is beaten everywhere here."
    return sentence + _close(front)


def _close(front: Sequence[Summary]) -> str:
    noise = sum(m.change.noise for m in front)
    return f" The change against fp32 is noise for {noise} of these {len(front)}." if noise else ""


def _curve_sentence(curves: Sequence[tuple[str, list[Summary]]], front: Sequence[Summary], layers: str) -> str:
    counts = [(label, sum(any(m is f for f in front) for m in found)) for label, found in curves]
    on = [f"{count} of {label}" for label, count in sorted(counts, key=lambda c: (-c[1], c[0])) if count]
    off = [label for label, count in counts if not count]
    sentence = f"The Pareto front of the {layers} has {', '.join(on)}"
    sentence += f", and none of {', '.join(off)}." if off else "."
    fitting = [(label, m) for label, found in curves for m in found if m.change.fits]
    if fitting:
        label, best = min(fitting, key=lambda pair: (_mean(pair[1].depthwise), pair[0]))
        sentence += (
            f" The smallest that keep the accuracy of fp32 take {size(_mean(best.depthwise))}: {label} at "
            f"{plural(bits_of(best) or 0, 'bit')}, {change_text(best.change)}."
        )
    else:
        sentence += " None keeps the accuracy of fp32."
    return sentence


def _points(
    methods: Sequence[Summary], x: Callable[[Summary], Estimate | None], y: Callable[[Summary], Estimate | None]
) -> tuple[Point, ...]:
    found = ((x(m), y(m), of_method(m)) for m in methods)
    return tuple(Point(a, b, label) for a, b, label in found if a is not None and b is not None)


def _bits_estimate(method: Summary) -> Estimate | None:
    bits = bits_of(method)
    return None if bits is None else Estimate(bits)


def _depthwise(method: Summary) -> Estimate | None:
    return method.depthwise


def _accuracy(method: Summary) -> Estimate:
    return method.accuracy


def _file_kilobytes(method: Summary) -> Estimate | None:
    return _kilobytes(method.file)


def _kilobytes(value: Estimate | None) -> Estimate | None:
    if value is None:
        return None
    return Estimate(value.mean / 1000, None if value.deviation is None else value.deviation / 1000)


def _mean(value: Estimate | None) -> float:
    assert value is not None
    return value.mean
