"""The figures, drawn with matplotlib without a display."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ilwp_plugin._imports import optional
from ilwp_plugin.analysis.distributions import Distribution
from ilwp_plugin.analysis.references import ReferenceShares

__all__ = ["DPI", "PALETTE", "draw_distributions", "draw_reference_shares", "drawing"]

DPI = 160
"""Dots an inch of the pictures."""

PALETTE = ("#555555", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7", "#e69f00")
"""Told apart by colour-blind readers, too (Okabe and Ito); grey for what others are measured against."""

_COLOURS = {"weights": PALETTE[3], "residuals": PALETTE[4]}
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 9.5,
    "text.parse_math": False,  # names are shown as they are
}
_MOST_NUMBERED = 15
"""Layers of a heat map whose cells have room for a number."""


@contextmanager
def drawing(
    target: Path | BinaryIO, width: float, height: float, count: int = 1, columns: int | None = None, **axes: Any
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure that is saved as PNG at the end; the same bytes each time.

    Args:
        target: a path, or a file that is open for writing.
        width, height: of a panel, in inches.
        count: panels.
        columns: panels in a row; all of them by default.
        axes: see `Figure.subplots`.

    Yields:
        The figure, and the axes of each panel.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    matplotlib = optional("matplotlib", "report")
    columns = columns or count
    rows = math.ceil(count / columns)
    with matplotlib.rc_context(_STYLE):
        # no pyplot: no global state, no display
        figure = optional("matplotlib.figure", "report").Figure(
            figsize=(width * columns, height * rows), layout="constrained"
        )
        yield figure, list(np.atleast_1d(figure.subplots(rows, columns, **axes)).flat)
        figure.savefig(target, dpi=DPI, format="png", metadata={"Software": None})


def draw_reference_shares(panels: Mapping[str, ReferenceShares], target: Path | BinaryIO) -> None:
    """Fig. 2 and 3: heat maps of best references, one panel for each title."""
    with drawing(target, 5.6, 5.0, len(panels)) as (figure, axes):
        for axis, (title, shares) in zip(axes, panels.items(), strict=True):
            n = len(shares.layers)
            table = 100 * np.array(shares.shares)
            table[np.triu_indices(n)] = np.nan  # only earlier layers can be references
            image = axis.imshow(table, cmap="viridis", vmin=0, vmax=100)
            step = max(1, n // 10)
            axis.set_xticks(range(0, n, step), [str(i + 1) for i in range(0, n, step)])
            axis.set_yticks(range(0, n, step), [str(i + 1) for i in range(0, n, step)])
            axis.set_xlabel("source layer")
            axis.set_ylabel("target layer")
            for row, column in zip(*np.nonzero(table >= 0.5), strict=True) if n <= _MOST_NUMBERED else ():
                value = table[row, column]
                colour = "black" if value > 60 else "white"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
            share = shares.previous_layer_share
            axis.set_title(title if share is None else f"{title}\nfrom the layer before: {share:.0%}")
        figure.colorbar(image, ax=axes, label="share of best references (least L1), %", shrink=0.85)


def draw_distributions(
    panels: Mapping[str, tuple[Distribution, Distribution]], target: Path | BinaryIO, columns: int | None = None
) -> None:
    """Fig. 7: histograms of weights and residuals with their Laplace fits, one panel for each title, on one scale."""
    with drawing(target, 5.6, 3.9, len(panels), columns, sharex=True, sharey=True) as (_, axes):
        top = max(max(d.density) for pair in panels.values() for d in pair)
        for axis, (title, pair) in zip(axes, panels.items(), strict=False):
            for distribution in pair:
                edges = np.array(distribution.edges)
                colour, b = _COLOURS[distribution.name], distribution.laplace_scale
                axis.stairs(distribution.density, edges, fill=True, alpha=0.35, color=colour)
                x = np.linspace(edges[0], edges[-1], 801)
                label = f"{distribution.name}: b = {b:.3g}, {distribution.laplace_entropy_bits:.2f} bits"
                if b > 0:
                    axis.plot(x, np.exp(-np.abs(x) / b) / (2 * b), color=colour, label=label)
            axis.set_yscale("log")
            axis.set_ylim(top * 1e-4, top * 100)  # room for the legend
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_xlabel("value, in units of weight")
            axis.set_ylabel("density")
            axis.set_title(title)
            axis.legend(title="Laplace fit and its entropy", loc="upper center", title_fontsize=9.5)
            axis.label_outer()
