"""Panels drawn as PNG."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from ilwp_plugin._imports import optional
from ilwp_plugin.analysis.figures import PALETTE, draw_distributions, draw_reference_shares, drawing
from ilwp_plugin.compare.report.figures import Bars, Chart, Heatmap, Histograms, Panel, Point, Series
from ilwp_plugin.compare.report.text import fraction, judgement, of_method, size

__all__ = ["draw"]

_OURS, _OTHERS, _TOOLKITS = PALETTE[4], "#8c8c8c", (PALETTE[3], PALETTE[2], PALETTE[5], PALETTE[1], PALETTE[6])
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK = "#222222"
_WIDTH = 5.6
"""Inches; with the fonts of the style still legible on a phone."""
_SPREAD = 8.0
"""Points of accuracy beneath the best that a chart shows."""
_NARROW = 1.0
"""Points of accuracy that an axis spans at least, so that noise does not look like more."""


@singledispatch
def draw(panel: Panel) -> bytes:
    """PNG of a panel; the same bytes each time.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    raise NotImplementedError(type(panel).__name__)


@draw.register
def _(panel: Heatmap) -> bytes:
    buffer = io.BytesIO()
    draw_reference_shares({panel.title: panel.shares}, buffer)
    return buffer.getvalue()


@draw.register
def _(panel: Histograms) -> bytes:
    buffer = io.BytesIO()
    draw_distributions(panel.panels, buffer, columns=1)
    return buffer.getvalue()


@draw.register
def _(panel: Bars) -> bytes:
    """Horizontal bars from 0: above each whose it is, at its end its bytes."""
    buffer = io.BytesIO()
    colours = _colours([bar.label for bar in panel.bars])
    longest = max(bar.method.file.mean for bar in panel.bars)
    with drawing(buffer, 5.0, 0.6 + 0.64 * len(panel.bars)) as (_, (axis,)):
        for row, bar in enumerate(panel.bars):
            method, fits = bar.method, bar.method.change.fits
            colour = colours[bar.label]
            style: dict[str, Any] = (
                {"facecolor": colour} if fits else {"facecolor": "white", "edgecolor": colour, "hatch": "////"}
            )
            if fits and method.kind == "stacked":
                style |= {"edgecolor": _OURS, "linewidth": 2.5}
            axis.barh(row, method.file.mean, height=0.36, **style)
            of_fp32 = f", {fraction(method.ratio.mean)} of fp32" if method.ratio and method.kind != "fp32" else ""
            inside = method.file.mean > 0.55 * longest
            halo = optional("matplotlib.patheffects", "compare").withStroke(linewidth=4, foreground="white")
            axis.annotate(
                f"{size(method.file.mean)}{of_fp32}",
                (method.file.mean, row),
                xytext=(-5 if inside else 5, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                color="white" if inside and fits else _INK,
                weight="bold",
                path_effects=[] if fits else [halo],
            )
            change = f"{method.accuracy.mean:.2f} %" if method.kind == "fp32" else judgement(method.change)
            above = f"{_short(of_method(method), 56)}\n{change}"
            axis.text(0, row - 0.22, above, va="bottom", color=_INK, fontsize=10, linespacing=1.15)
        axis.set_ylim(len(panel.bars) - 0.7, -0.8)
        axis.set_xlim(0, 1.02 * longest)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.xaxis.set_major_locator(optional("matplotlib.ticker", "compare").MaxNLocator(5))
        axis.xaxis.set_major_formatter(lambda value, _: size(value))
        axis.set_xlabel("file on disk")
    return buffer.getvalue()


@draw.register
def _(panel: Chart) -> bytes:
    buffer = io.BytesIO()
    columns = 1 if max(len(s.label) for s in panel.series) > 30 else 3
    below = 0.2 * (len(panel.front) + math.ceil(len(panel.series) / columns) + 1) if panel.front else 0.0
    with drawing(buffer, _WIDTH, 4.0 + below) as (figure, (axis,)):
        points = [p for series in panel.series for p in series.points]
        floor = _floor(panel, points)
        for style, series in zip(_styles(panel), panel.series, strict=True):
            _draw_series(axis, series, style, floor)
        _set_axes(axis, panel, points, floor)
        if panel.front:
            _draw_front(figure, axis, panel.front)
            figure.legend(loc="outside upper left", ncols=columns, frameon=False)
        else:
            _label_ends(axis, panel.series, _styles(panel))
    return buffer.getvalue()


def _floor(panel: Chart, points: Sequence[Point]) -> float | None:
    """Where an axis of accuracy ends, so that one network that has collapsed does not flatten all others."""
    if not panel.y.startswith("accuracy"):
        return None
    lowest, best = min(p.y.mean for p in points), max(p.y.mean for p in points)
    return best - _SPREAD if lowest < best - _SPREAD else None


def _styles(panel: Chart) -> list[dict[str, Any]]:
    count = len(panel.series)
    if panel.ordered:
        colormap = optional("matplotlib", "compare").colormaps["viridis"]
        colours = [colormap(0.85 * i / max(count - 1, 1)) for i in range(count)]
    elif any(series.joined for series in panel.series):
        colours = [PALETTE[i % len(PALETTE)] for i in range(count)]
    else:
        by_owner = _colours([series.owner for series in panel.series])
        colours = [by_owner[series.owner] for series in panel.series]
    dashes = ("-", "--", ":")
    return [
        {
            "color": colours[i],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": dashes[i // len(PALETTE) % 3] if series.joined else "none",
            "markeredgecolor": _OURS if series.owner.endswith("+ ilwp") else colours[i],
        }
        for i, series in enumerate(panel.series)
    ]


def _draw_series(axis: Any, series: Series, style: dict[str, Any], floor: float | None) -> None:
    shown = [p for p in series.points if floor is None or p.y.mean >= floor]
    below = [p for p in series.points if p not in shown]
    x_errors, y_errors = ([getattr(p, a).deviation or 0 for p in shown] for a in "xy")
    axis.errorbar(
        [p.x.mean for p in shown],
        [p.y.mean for p in shown],
        xerr=x_errors if any(x_errors) else None,
        yerr=y_errors if any(y_errors) else None,
        label=_short(series.label, 46),
        markersize=6,
        markeredgewidth=1.4,
        linewidth=1.6,
        elinewidth=1,
        capsize=3,
        alpha=0.9,
        **style,
    )
    if below:
        axis.plot([p.x.mean for p in below], [floor] * len(below), "v", color=style["color"], alpha=0.5, clip_on=False)


def _set_axes(axis: Any, panel: Chart, points: Sequence[Point], floor: float | None) -> None:
    ticker = optional("matplotlib.ticker", "compare")
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel(panel.x)
    axis.set_ylabel(panel.y)
    xs = sorted({p.x.mean for p in points})
    if panel.x_scale == "log":
        axis.set_xscale("log")
        wide = xs[-1] > 30 * xs[0]
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if not wide else (1, 3)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    elif panel.x_scale == "weight":
        axis.set_xscale("symlog", linthresh=min((x for x in xs if x > 0), default=1))
        ticks: list[float] = []
        for x in xs:
            if not ticks or x > 1.25 * ticks[-1]:
                ticks.append(x)
        axis.set_xticks(ticks, [f"{x:.3g}" for x in ticks])
        axis.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if floor is not None:
        axis.set_ylim(bottom=floor)
        below = sum(p.y.mean < floor for p in points)
        axis.text(0.01, 0.015, f"at the foot: {below} below {floor:.1f} %", transform=axis.transAxes, fontsize=9)
    elif panel.y.startswith("accuracy"):
        low, high = axis.get_ylim()
        wider = max(_NARROW - (high - low), 0) / 2
        axis.set_ylim(low - wider, high + wider)
    else:
        axis.set_ylim(bottom=0)


def _draw_front(figure: Any, axis: Any, front: Sequence[Point]) -> None:
    """The Pareto front, its points numbered, and what they are beneath the chart."""
    axis.plot(
        [p.x.mean for p in front],
        [p.y.mean for p in front],
        drawstyle="steps-post",
        color=_INK,
        linewidth=1,
        zorder=1,
        label="Pareto front",
    )
    lines = []
    bottom, _ = axis.get_ylim()
    for number, point in enumerate(front, start=1):
        lines.append(f"{number}  {_short(point.label, 68)}")
        axis.annotate(
            str(number),
            (point.x.mean, max(point.y.mean, bottom)),
            xytext=(-4, 5),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            weight="bold",
            color=_INK,
        )
    figure.supxlabel("\n".join(lines), x=0.02, ha="left", fontsize=9.5, linespacing=1.3)


def _label_ends(axis: Any, series: Sequence[Series], styles: Sequence[dict[str, Any]]) -> None:
    """The label of each line at its right end, moved apart where they would overlap."""
    (low, high), gap = axis.get_ylim(), 0.055
    ends = [((s.points[-1].y.mean - low) / (high - low), s, style) for s, style in zip(series, styles, strict=True)]
    ends.sort(key=lambda end: (end[0], end[1].label))
    heights: list[float] = []
    for wanted, _, _ in ends:
        heights.append(max(wanted, heights[-1] + gap if heights else 0.0))
    excess = heights[-1] - 1.0
    for i in reversed(range(len(heights))):  # back down where they ran out at the top
        limit = 1.0 if i == len(heights) - 1 else heights[i + 1] - gap
        heights[i] = min(heights[i], limit) if excess > 0 else heights[i]
    for height, (_, one, style) in zip(heights, ends, strict=True):
        axis.annotate(
            "\n".join(textwrap.wrap(_short(one.label, 48), 24)),
            (one.points[-1].x.mean, min(max(one.points[-1].y.mean, low), high)),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            color=style["color"],
            arrowprops={"arrowstyle": "-", "color": style["color"], "linewidth": 0.8, "alpha": 0.5},
            annotation_clip=False,
        )


def _colours(owners: Sequence[str]) -> dict[str, str]:
    """Ours in one colour, grey for what needs no toolkit, one for each toolkit."""
    toolkits = sorted({o.removesuffix(" + ilwp") for o in owners} - {"ilwp", "fp32", "no toolkit"}, key=str.casefold)
    of_toolkit = {name: _TOOLKITS[i % len(_TOOLKITS)] for i, name in enumerate(toolkits)}
    return {o: _OURS if o == "ilwp" else of_toolkit.get(o.removesuffix(" + ilwp"), _OTHERS) for o in owners}


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
